"""The memory that a long document takes while its token store is built."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SIZE = 50_000_000
LIMIT = 5.2  # The largest that was measured is 4.7; what is promised is 6.
PROGRAM = """
import json, sys
from data.open_stores import open_data
from data.settings import DataConfig

def peak(path):
    open_data(DataConfig(path=path, **json.loads(sys.argv[1])))
    # Unlike ru_maxrss, this does not begin with the memory of the process that started this one.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

print(json.dumps([peak(path) for path in sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize(
    "suffix, tokenizer", [("txt", "bytes"), ("jsonl", "bytes"), ("jsonl", "bpe:512")]
)
def test_memory_is_at_most_six_times_the_longest_document(tmp_path, suffix, tokenizer):
    """One emoji makes a `str` take four bytes a character."""
    words = "\U0001f9ff " + " ".join(str(i * 7919 % 100_003) for i in range(50_000))
    long = (words + " ") * (SIZE // len(words))
    paths = {name: tmp_path / f"{name}.{suffix}" for name in ("short", "long")}
    for path, text in zip(paths.values(), (words[:2000], long), strict=True):
        path.write_text(text if suffix == "txt" else json.dumps({"text": text}) + "\n")
    settings = {"cache": str(tmp_path / "cache"), "tokenizer": tokenizer, "max_shared": 1.0}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings), *map(str, paths.values())],
        capture_output=True,
        text=True,
        check=True,
    )
    empty, full = json.loads(done.stdout)
    assert full - empty <= LIMIT * SIZE
