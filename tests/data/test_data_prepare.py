"""`python -m data.prepare` from files to files: what it writes, and what it refuses."""

import contextlib
import errno
import fcntl
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from data.prepare import __main__ as command
from data.prepare import document_filter, journal, pipeline
from data.prepare.settings import PrepareConfig
from data.readers.decompression import read_blocks
from data.readers.read_stats import ReadStats
from data.settings import DataConfig
from data.sources.source import SOURCES_OF_KIND
from errors import ConfigError, DataError, DiskError, LockedError

SOURCES = SOURCES_OF_KIND["documents"]

PLAIN = ["--jaccard_threshold=0", "--quality=", "--no-compress"]


def said(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


def words(start: int, count: int) -> str:
    return "the and " + " ".join(f"word{i}" for i in range(start, start + count))


@pytest.fixture
def corpus(tmp_path):
    """Two files with a document for each stage; what the flags are, and what must stay."""
    question = words(900, 20)
    first = [words(0, 200), "", words(0, 20), words(1000, 60) + " filth", f"{words(300, 99)}\r\n"]
    second = [words(0, 195) + " a b c d e", words(300, 99), f"{words(400, 60)} {question} more"]
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw / "a.jsonl", *first)
    (raw / "b.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps({"text": t, "id": 1}) + "\n" for t in second).encode())
    )
    (raw / "c.jsonl.zst").write_bytes(
        zstandard.compress(json.dumps({"n": 7, "text": words(700, 70)}).encode())
    )
    write(tmp_path / "evals.jsonl", "short", question)
    (tmp_path / "words.txt").write_text("filth\n")
    flags = [
        f"--path={raw}",
        f"--evals={tmp_path}/evals.jsonl",
        f"--toxic_words={tmp_path}/words.txt",
    ]
    return flags, [first[0], first[4], words(700, 70)]


STAGES = {"empty": 1, "quality": 1, "toxicity": 1, "contamination": 1, "exact": 1, "near": 1}


def test_each_stage_drops_its_document_whatever_the_workers(corpus, tmp_path, monkeypatch, capsys):
    pytest.importorskip("datasketch")
    flags, left = corpus
    assert command.main([*flags, f"--out={tmp_path}/one"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 of 9 documents kept") and "(words 1)" in out
    with monkeypatch.context() as here:
        here.setattr(pipeline, "BLOCK_DOCUMENTS", 2)  # other blocks
        assert command.main([*flags, f"--out={tmp_path}/two", "--workers=2"]) == 0
    names = {"documents.jsonl.zst", "dropped.jsonl.zst", "report.json"}
    for folder in ("one", "two"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    report = said(tmp_path / "one")
    assert report["documents"] == {"read": 9, "kept": 3, "skipped": 0, "replaced": 0}
    assert report["dropped"] == STAGES
    assert report["text_bytes"]["kept"] == sum(map(len, left))
    assert report["quality"]["words"] == {"low": 50, "high": 100_000, "failed": 1}
    item = f"{tmp_path}/evals.jsonl:2"
    assert report["contamination"] == {"items": 2, "too_short": 1, "matched": {item: 1}}
    assert [Path(given["file"]).name for given in report["inputs"]] == sorted(
        path.name for path in (tmp_path / "raw").iterdir()
    )
    found = SOURCES["jsonl"](
        DataConfig(
            source="jsonl",
            path=str(tmp_path / "one" / "documents.jsonl.zst"),
            valid_path=f"{tmp_path}/evals.jsonl",
            test_path=str(tmp_path / "raw" / "a.jsonl"),
        )
    )
    kept = [text for split, text in found.read(ReadStats()) if split == "train"]
    assert sorted(kept) == sorted(left)


def test_what_is_dropped_is_told_with_its_place(corpus, tmp_path):
    flags, _ = corpus
    assert (
        command.main([*flags, "--jaccard_threshold=0", "--no-compress", f"--out={tmp_path}/out"])
        == 0
    )
    dropped = {row["stage"]: row for row in rows(tmp_path / "out" / "dropped.jsonl")}
    assert set(dropped) == set(STAGES) - {"near"}
    first, second = f"{tmp_path}/raw/a.jsonl", f"{tmp_path}/raw/b.jsonl.gz"
    raw = Path(first).read_bytes()
    for stage in ("empty", "quality", "toxicity"):
        row = dropped[stage]
        assert row["file"] == first and raw[row["byte"] :].startswith(b'{"text": ')
    assert dropped["quality"]["rules"] == {"words": 22}
    assert dropped["toxicity"]["phrases"] == {"filth": 1}
    assert dropped["exact"]["file"] == second
    kept_at = raw.index(json.dumps({"text": words(300, 99) + "\r\n"}).encode())
    assert dropped["exact"]["of"] == {"file": first, "byte": kept_at}
    (item,) = dropped["contamination"]["items"].values()
    assert item == {
        "ngrams": 10,
        "words": "the and " + " ".join(f"word{i}" for i in range(900, 911)),
    }
    report = said(tmp_path / "out")
    assert "near" not in report["dropped"] and "datasketch" not in report


def test_lines_stay_as_they_were(tmp_path):
    lines = [
        '{"text": "a b", "n": 1.50, "n": 2}',
        '{"n": 1e400 ,"text":"caf\\u00e9"}',
        '{"text":"\x7f"}',
    ]
    (tmp_path / "a.jsonl").write_bytes("\ufeff{}\r\n \n{}\n{}".format(*lines).encode())
    flags = [*PLAIN, f"--path={tmp_path}/a.jsonl"]
    assert command.main([*flags, f"--out={tmp_path}/out"]) == 0
    assert (tmp_path / "out" / "documents.jsonl").read_text() == "\n".join(lines) + "\n"


def test_text_is_cut_into_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\none")
    flags = [*PLAIN, "--source=text", f"--path={tmp_path}/a.txt", f"--out={tmp_path}/out"]
    assert command.main([*flags, "--document_separator=\\n\\n", "--text_field=body"]) == 0
    assert rows(tmp_path / "out" / "documents.jsonl") == [{"body": "one"}, {"body": "two"}]
    assert rows(tmp_path / "out" / "dropped.jsonl")[0]["byte"] == 10


def refused(flags: list[str], capsys) -> str:
    """What a failing command says, in one line; and that it leaves nothing."""
    code = command.main(flags)
    out, err = capsys.readouterr()
    assert code in (ConfigError.code, DataError.code) and out == "" and err.count("\n") == 1, err
    (folder,) = (Path(f.removeprefix("--out=")) for f in flags if f.startswith("--out="))
    assert not folder.exists() and not folder.with_name(f"{folder.name}.partial").exists()
    return err


def test_bad_documents_follow_the_policy(tmp_path, capsys):
    # covers D1, D16
    path, out = tmp_path / "a.jsonl", f"--out={tmp_path}/out"
    good, flags = b'{"text": "good"}\n', [*PLAIN, f"--path={path}", out]
    for bad, message in {
        b'{"text": "\xff"}': f"{path}: byte 27 is not UTF-8 (0xff: invalid start byte); "
        "convert it, or set --on_error",
        b'{"text": "a"': "the line at byte 17 is not JSON",
        b'{"body": "a", "id": 1}': "no text under 'text'; it holds: body, id",
        b'{"text": null}': "None under 'text' is no text",
        b'{"text": "\\ud800"}': "lone surrogate",
        b"[" * 100_000: "is not JSON",
    }.items():
        path.write_bytes(good + bad + b"\n")
        assert message in refused(flags, capsys)
    assert command.main([*flags, "--on_error=skip"]) == 0
    assert said(tmp_path / "out")["documents"] == {
        "read": 1,
        "kept": 1,
        "skipped": 1,
        "replaced": 0,
    }
    path.write_bytes(good + b'{"text": "a\\ud800", "id": 1}\n{"text": "b\xff"}\n')
    assert (
        command.main([*PLAIN, f"--path={path}", "--on_error=replace", f"--out={tmp_path}/o2"]) == 0
    )
    found = rows(tmp_path / "o2" / "documents.jsonl")
    assert found[1:] == [{"text": "a\ufffd", "id": 1}, {"text": "b\ufffd"}]
    assert said(tmp_path / "o2")["documents"]["replaced"] == 2


def test_nothing_to_prepare_is_refused(tmp_path, capsys, caplog):
    # covers D2
    (tmp_path / "a.jsonl").write_text("")
    flags = [*PLAIN, f"--path={tmp_path}/a.jsonl", f"--out={tmp_path}/out"]
    assert "a.jsonl: no document in it" in refused(flags, capsys)
    write(tmp_path / "b.jsonl", " ", "text")
    assert "all 2 documents were dropped (empty 1, quality 1)" in refused(
        [flags[0], "--quality=words", f"--path={tmp_path}/b.jsonl", flags[-1]], capsys
    )
    assert command.main([*PLAIN, f"--path={tmp_path}/?.jsonl", flags[-1]]) == 0
    assert "a.jsonl: no document in it" in caplog.text


def test_a_huge_line_is_a_document(tmp_path):
    # covers D16
    write(tmp_path / "a.jsonl", "x" * 5_000_000, "y " * 1_000_000)
    flags = [
        f"--path={tmp_path}/a.jsonl",
        "--jaccard_threshold=0",
        "--quality=words=1:1000,hash_ratio=0:inf",
    ]
    assert command.main([*flags, f"--out={tmp_path}/out"]) == 0
    assert said(tmp_path / "out")["quality"] == {
        "words": {"low": 1, "high": 1000, "failed": 1},
        "hash_ratio": {"low": 0, "high": None, "failed": 0},  # in JSON no infinity
    }
    assert said(tmp_path / "out")["text_bytes"] == {"read": 7_000_000, "kept": 5_000_000}


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--path=", "--path is empty"),
        ("--paths=a", "unrecognized arguments: --paths=a; did you mean '--path'"),
        ("--jaccard_threshold=1.5", "--jaccard_threshold is 1.5, must be >= 0 and <= 1"),
        ("--jaccard_threshold=x", "invalid float value: 'x'"),
        ("--workers=0", "--workers is 0, must be >= 1"),
        ("--on_error=ignore", "--on_error is 'ignore'; known: strict, replace, skip"),
        ("--quality=golpher", "unknown rule 'golpher'"),
        ("--min_words=14", "--min_words=14 must be at most --ngram=13"),
        ("--path=/no/such/file", "no file matches '/no/such/file'"),
        ("--evals=/no/such/file", "no file matches '/no/such/file'"),
    ],
)
def test_a_wrong_flag_is_one_line(tmp_path, capsys, flag, message):
    write(tmp_path / "a.jsonl", "text")
    flags = [*PLAIN, f"--path={tmp_path}/a.jsonl", f"--out={tmp_path}/out", flag]
    assert message in refused(flags, capsys)


def test_help_has_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name in PrepareConfig.__dataclass_fields__:
        assert f"--{name}" in text


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", "text")
    cfg = PrepareConfig(path=f"{tmp_path}/a.jsonl", quality="", jaccard_threshold=0.0)
    out, partial = tmp_path / "deep" / "out", tmp_path / "deep" / "out.partial"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        monkeypatch.context() as here,
        pytest.raises(DiskError, match="No space left.*no file was"),
    ):
        here.setattr(pipeline, "make_report", full)
        pipeline.prepare(cfg, out)
    assert list((tmp_path / "deep").iterdir()) == []
    partial.mkdir()
    (partial / "documents.jsonl").write_text("what a killed process left")
    held = os.open(partial, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    with pytest.raises(LockedError, match="another process prepares"):
        pipeline.prepare(cfg, out)
    os.close(held)
    assert pipeline.prepare(cfg, out)["documents"]["kept"] == 1
    assert list((tmp_path / "deep").iterdir()) == [out] and len(list(out.iterdir())) == 3
    with pytest.raises(ConfigError, match="exists; choose a new folder"):
        pipeline.prepare(cfg, out)


def test_a_worker_that_dies_is_told(tmp_path):
    # covers D12
    blocks = [[document_filter.InputDocument(0, "", "text")]] * 3
    with pytest.raises(DataError, match="a worker ended with exit code -9.*fewer --workers"):
        list(document_filter.filter_blocks(iter(blocks), Deadly(), 2))


def test_workers_leave_ctrl_c_to_the_reader():
    before = signal.getsignal(signal.SIGINT)
    block = [document_filter.InputDocument(0, "", "text")]
    ((_, ignored),) = document_filter.filter_blocks(iter([block]), Attentive(), 2)
    assert ignored == [True] and signal.getsignal(signal.SIGINT) == before


def test_an_interrupted_preparation_continues(corpus, tmp_path, monkeypatch, capsys):
    """The filters examine each document once, and the bytes are those without an interruption."""
    pytest.importorskip("datasketch")
    flags, _ = corpus
    monkeypatch.setattr(pipeline, "BLOCK_DOCUMENTS", 2)
    monkeypatch.setattr(journal, "PART_SECONDS", 0.0)
    assert command.main([*flags, f"--out={tmp_path}/whole"]) == 0
    examined: list[str] = []
    apply = document_filter.DocumentFilter.__call__

    def interrupted(self, text):
        if len(examined) == limit:
            raise KeyboardInterrupt
        examined.append(text)
        return apply(self, text)

    monkeypatch.setattr(document_filter.DocumentFilter, "__call__", interrupted)
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    for limit in (3, 7, 9):
        code = command.main([*flags, f"--out={out}"])
        err = capsys.readouterr().err
        assert (code, out.exists()) == ((0, True) if limit == 9 else (130, False))
        assert "the same command continues" in err or limit == 9
        if limit < 9:
            del examined[limit // 2 * 2 :]  # A block of two documents is the unit.
        if limit == 7:  # A killed process leaves more, and the last part may be damaged.
            (partial / "documents.jsonl.zst").write_bytes(b"part")
            last = sorted(partial.glob("*.npz"))[-1]
            last.write_bytes(last.read_bytes()[:-40])
            del examined[4:]
    assert "4 documents were filtered before the interruption" in err
    assert len(examined) == 9 and not partial.exists()
    assert {path.name for path in out.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_results_of_other_inputs_are_not_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "BLOCK_DOCUMENTS", 1)
    monkeypatch.setattr(journal, "PART_SECONDS", 0.0)
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    flags = [*PLAIN, f"--path={path}", f"--out={out}"]

    def fail_at_second(*_):
        (out.with_name("out.partial") / "filtered-000000.npz").stat()
        raise DataError("a worker ended")

    for change in ("inputs", "settings", "none"):
        write(path, "one", f"two {change}", "one")
        with monkeypatch.context() as here:
            here.setattr(pipeline.PrepareCounts, "add", fail_at_second)
            assert command.main(flags) == DataError.code
        assert out.with_name("out.partial").is_dir()
        if change == "inputs":
            write(path, "one", "three", "one")
            os.utime(path, ns=(1, 1))
        extra = ["--text_field=text", "--min_words=9"] if change == "settings" else []
        capsys.readouterr()
        assert command.main([*flags, *extra]) == 0
        is_same = change == "none"
        assert ("it begins again" in capsys.readouterr().err) != is_same
        assert len(rows(out / "documents.jsonl")) == 2
        shutil.rmtree(out)


def test_every_flip_in_a_compressed_output_is_found(tmp_path):
    write(tmp_path / "a.jsonl", "one", "two")
    cfg = PrepareConfig(path=f"{tmp_path}/a.jsonl", quality="", jaccard_threshold=0.0)
    pipeline.prepare(cfg, tmp_path / "out")
    path = tmp_path / "out" / "documents.jsonl.zst"
    raw, text = path.read_bytes(), b"".join(read_blocks(path, ReadStats()))
    silent = 0
    for bit in range(0, len(raw) * 8, 3):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with contextlib.suppress(DataError):
            silent += b"".join(read_blocks(path, ReadStats())) != text
    assert silent == 0


@pytest.mark.slow
def test_a_killed_preparation_ends_silently_and_continues(tmp_path):
    # covers D12
    write(tmp_path / "a.jsonl", *(words(i, 2000) for i in range(0, 600_000, 2000)))
    script = (
        "import sys; from data.prepare import __main__ as c, journal, pipeline;"
        "journal.PART_SECONDS, pipeline.BLOCK_DOCUMENTS = .2, 10;"
        "sys.exit(c.main(sys.argv[1:]))"
    )
    flags = [f"--path={tmp_path}/a.jsonl", "--jaccard_threshold=0", "--workers=2"]

    def start(out: str) -> subprocess.Popen:
        argv = [sys.executable, "-c", script, *flags, f"--out={tmp_path}/{out}"]
        return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)

    killed = start("out")
    part = tmp_path / "out.partial" / "filtered-000001.npz"
    while not part.exists() and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    # The pipe ends when the last worker has ended too.
    assert "Traceback" not in killed.communicate(timeout=60)[1]
    again, whole = start("out"), start("whole")
    for process, is_continued in ((again, True), (whole, False)):
        err = process.communicate(timeout=300)[1]
        assert ("documents were filtered before the interruption" in err) == is_continued
        assert process.returncode == 0
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


class Attentive:
    """Made in a worker, it remembers what Ctrl-C did at that time."""

    def __setstate__(self, _):
        self.ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN

    def __getstate__(self):
        return {"given": True}

    def __call__(self, text: str) -> bool:
        return self.ignored


class Deadly:
    """An examiner that the system kills."""

    def __call__(self, text: str):
        os.kill(os.getpid(), signal.SIGKILL)
