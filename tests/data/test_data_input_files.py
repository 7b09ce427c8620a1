"""Input files: links, loops, what is no regular file, damaged archives, line ends."""

import bz2
import errno
import gzip
import json
import lzma
import os
import socket
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data.open_stores import open_data
from data.readers import input_files, text_files
from data.readers.input_files import find_files
from data.readers.read_policy import ErrorPolicy
from data.readers.read_stats import ReadStats
from data.readers.text_files import iter_texts, parse_separator, split_by_separator
from data.settings import DataConfig
from data.sources.source import SOURCES_OF_KIND
from data.tokenizers import open_tokenizer
from errors import ConfigError, DataError

SOURCES = SOURCES_OF_KIND["documents"]


def names(patterns: Path | str) -> list[str]:
    return [path.name for path in find_files(str(patterns)).paths]


def test_linked_folders_are_searched_once(tmp_path):
    (tmp_path / "loop" / "a" / "b").mkdir(parents=True)
    for name in ("x.txt", "a/y.txt", "a/b/z.txt"):
        (tmp_path / "loop" / name).write_text(name)
    (tmp_path / "loop/a/b/up").symlink_to("../..")
    (tmp_path / "loop/a/b/upper").symlink_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/w.txt").write_text("w")
    (tmp_path / "loop/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "loop/twice").symlink_to(tmp_path / "elsewhere")
    for pattern in ("loop", "loop/**/*.txt", "loop/**", "l*p", "loop/a/b/up/**/*.txt"):
        assert sorted(names(tmp_path / pattern)) == ["w.txt", "x.txt", "y.txt", "z.txt"], pattern


def test_two_names_of_a_file_are_read_once_and_told(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to("a.txt")
    os.link(tmp_path / "a.txt", tmp_path / "c.txt")
    (tmp_path / "d.txt").symlink_to("nowhere")
    (tmp_path / "e.txt").symlink_to("e.txt")
    for pattern in (tmp_path, tmp_path / "*.txt", tmp_path / "**" / "[abcde].txt"):
        found = find_files(str(pattern))
        assert [path.name for path in found.paths] == ["a.txt"]
        repeated, broken = sorted(found.notes, key=len, reverse=True)
        assert "2 names lead to files that other names lead to" in repeated
        assert "2 links lead to no file" in broken and "d.txt" in broken
    with pytest.raises(DataError, match="in the train and in the valid split"):
        cfg = DataConfig(source="text", path=f"{tmp_path}/a.txt", valid_path=f"{tmp_path}/c.txt")
        SOURCES["text"](cfg)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.txt"))
    (tmp_path / "linked.txt").symlink_to("/dev/zero")
    refused = {"pipe.txt": "a FIFO", "s.txt": "a socket", "linked.txt": "a device"}
    for name, kind in refused.items():
        for pattern in (tmp_path / name, f"{tmp_path}/[{name[0]}]{name[1:]}"):
            with pytest.raises(DataError, match=f"{name} is {kind}, must be a regular file"):
                find_files(str(pattern))
        with pytest.raises(DataError, match=f"{name} is {kind}"):
            open_tokenizer(str(tmp_path / name))
    (tmp_path / "text.txt").write_text("text")
    found = find_files(str(tmp_path))
    assert [path.name for path in found.paths] == ["text.txt"]
    assert "3 entries are FIFOs, sockets or devices" in found.notes[0]
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="huge.json has 1099511627776 bytes, more than any"):
        open_tokenizer(str(tmp_path / "huge.json"))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed" / "inner").mkdir(parents=True)
    (tmp_path / "text.txt").write_text("text")
    listdir = os.listdir

    def refused(folder):
        if Path(folder).name == "inner":
            raise PermissionError(errno.EACCES, "Permission denied")
        return listdir(folder)

    monkeypatch.setattr(input_files.os, "listdir", refused)
    for pattern in (tmp_path, tmp_path / "**" / "*.txt", tmp_path / "closed" / "inner"):
        with pytest.raises(DataError, match="closed/inner cannot be read: Permission denied"):
            find_files(str(pattern))


PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["cut", "flipped", "plain"])
def test_damaged_archives_follow_the_policy(tmp_path, suffix, damage, caplog):
    lines = [json.dumps({"text": f"document {i} of {i * i * 7919}"}) for i in range(400)]
    raw = PACK[suffix]("\n".join(lines).encode())
    for name in "ab":
        (tmp_path / f"{name}.jsonl{suffix}").write_bytes(raw)
    changed = bytearray(raw)
    changed[len(raw) // 2] ^= 16
    damaged = {"cut": raw[: len(raw) // 2], "flipped": bytes(changed), "plain": b"plain text"}
    (tmp_path / f"c.jsonl{suffix}").write_bytes(damaged[damage])
    settings = {"source": "jsonl", "path": f"{tmp_path}/*.jsonl{suffix}"}
    with pytest.raises(DataError, match=f"c.jsonl{suffix} cannot be read.*set on_error to skip"):
        list(SOURCES["jsonl"](DataConfig(**settings)).read(ReadStats()))
    stats = ReadStats()
    found = list(SOURCES["jsonl"](DataConfig(**settings, on_error="skip")).read(stats))
    # What a damaged archive holds before the damage is found may be garbage.
    assert len(found) == 800 and stats.skipped == {"train": 1}
    assert caplog.text.count(f"c.jsonl{suffix} cannot be read") == 1


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_archives_of_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"text") if "g" in name else b"text")
    source = SOURCES["text"](DataConfig(source="text", path=str(tmp_path / name)))
    with pytest.raises(DataError, match=f"{name} is an archive of files; unpack it"):
        list(source.read(ReadStats()))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("source", ["text", "jsonl"])
def test_other_encodings_are_named_whatever_the_policy(tmp_path, encoding, source):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "a.txt").write_bytes(f'{mark}{{"text": "text"}}\n\nmore'.encode(encoding))
    for policy in ("strict", "replace"):
        cfg = DataConfig(source=source, path=str(tmp_path / "a.txt"), on_error=policy)
        with pytest.raises(DataError, match="looks like UTF-16: convert it, or set data.on_error"):
            list(SOURCES[source](cfg).read(ReadStats()))


TEXT = st.lists(st.sampled_from([b"a", b"\r\n", b"\n", b"\r"]), max_size=30).map(b"".join)


@given(TEXT, st.sampled_from([b"\n", b"\n\n", b"a\n"]), st.integers(1, 5))
def test_separators_match_the_line_ends_of_every_system(raw, separator, size):
    blocks = [raw[i : i + size] for i in range(0, len(raw), size)]
    found = list(split_by_separator(blocks, separator, any_line_break=True))
    assert b"".join(part for _, part in found) == b"".join(
        raw[offset : offset + len(part)] for offset, part in found
    )
    plain = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    wanted = plain.split(separator)
    wanted = wanted if wanted[-1] else wanted[:-1]
    parts = [bytes(part).replace(b"\r\n", b"\n").replace(b"\r", b"\n") for _, part in found]
    assert parts == wanted


def test_a_file_from_windows_is_cut_at_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"one\r\nline\r\n\r\ntwo\r\n\r\n" * 3)
    policy = ErrorPolicy("strict", "train", ReadStats())
    for setting in (r"\n\n", "\n\n", r"\r\n\r\n"):
        found = [text for _, text in iter_texts(path, parse_separator(setting), policy)]
        assert found == ["one\r\nline", "two"] * 3
    assert parse_separator(r"a\tb") == b"a\tb"
    with pytest.raises(ConfigError, match=r"data.document_separator is '\\udcff', must be UTF-8"):
        parse_separator("\udcff")


def test_a_document_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_DOCUMENT_BYTES", 1 << 20)
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(1 << 40)
    cfg = DataConfig(source="text", path=str(tmp_path / "a.txt"), cache=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="a.txt: a document is longer than .* document_separator"):
        open_data(cfg)
