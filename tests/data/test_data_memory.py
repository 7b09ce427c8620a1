"""The memory that a long document takes while its token store is built."""

import json
import subprocess
import sys

import pytest

SIZE = 50_000_000
PROGRAM = """
import json, resource, sys
from data import DataConfig, open_data

def peak(path):
    settings = json.loads(sys.argv[1])
    open_data(DataConfig(path=path, **settings))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

print(json.dumps([peak(path) for path in sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:512"])
def test_memory_is_at_most_six_times_the_longest_document(tmp_path, tokenizer):
    words = " ".join(str(i * 7919 % 100_003) for i in range(50_000))
    (tmp_path / "short.txt").write_text(words[:2000])
    (tmp_path / "long.txt").write_text((words + " ") * (SIZE // len(words)))
    settings = {"cache": str(tmp_path / "cache"), "tokenizer": tokenizer, "max_shared": 1.0}
    paths = [str(tmp_path / name) for name in ("short.txt", "long.txt")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings), *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    empty, full = json.loads(done.stdout)
    assert full - empty <= 6 * SIZE
