"""Sources: files of every kind, bad bytes, splits by hash."""

import bz2
import dataclasses
import gzip
import json
import lzma
import random
from unittest import mock

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data.readers import decompression, json_lines, long_text, read_policy, suffixes, text_files
from data.readers.long_text import LongText
from data.readers.read_stats import ReadStats
from data.readers.text_files import split_by_separator
from data.settings import DataConfig
from data.sources.source import SOURCES_OF_KIND
from data.splits import assign_splits, plan_hold_out
from errors import ConfigError, DataError

SOURCES = SOURCES_OF_KIND["documents"]


def test_every_source_that_the_table_names_is_there():
    assert all(callable(table[name]) for table in SOURCES_OF_KIND.values() for name in table)


def read(tally: ReadStats | None = None, **settings) -> dict[str, list[str]]:
    """The documents of all splits; the held-out ones are named apart unless given."""
    tally = tally or ReadStats()
    found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for split, text in SOURCES[settings["source"]](DataConfig(**settings)).read(tally):
        found[split].append("".join(text.pieces()) if isinstance(text, LongText) else text)
    return found


@pytest.fixture
def held(tmp_path):
    """Paths for the held-out splits, so that train is read as it is."""
    for split in ("valid", "test"):
        (tmp_path / f"{split}.held").write_text(f"{split} text")
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": split}))
    return {
        kind: {f"{s}_path": str(tmp_path / f"{s}.{suffix}") for s in ("valid", "test")}
        for kind, suffix in (("text", "held"), ("jsonl", "jsonl"))
    }


def texts(path, held, tally=None, **settings) -> list[str]:
    return read(tally, source="text", path=str(path), **held["text"], **settings)["train"]


def lines(path, held, tally=None, **settings) -> list[str]:
    return read(tally, source="jsonl", path=str(path), **held["jsonl"], **settings)["train"]


JSON_TEXTS = st.text(
    st.sampled_from('ab \\"/\n\u00e9\u05d0\u65e5\U0001f9ff\U0010ffff'), max_size=60
)


@given(JSON_TEXTS, JSON_TEXTS, st.integers(12, 20), st.booleans())
def test_long_strings_of_json_are_those_of_json_loads(text, other, n_bytes, is_ascii):
    """In pieces of any size, in which no escape, pair of surrogates or character is cut."""
    record = {"text": text, "other": other, "number": 1.5, "list": [1, "b"]}
    raw = json.dumps(record, ensure_ascii=is_ascii).encode()
    with mock.patch.object(json_lines, "LONG_TEXT_BYTES", n_bytes):
        found = json_lines.parse_long_json(raw)
        assert found is not None
        n_escaped = len(json.dumps(text, ensure_ascii=is_ascii).encode()) - 2
        assert isinstance(found["text"], LongText) == (n_escaped > n_bytes)
        assert record == {
            k: "".join(v.pieces()) if isinstance(v, LongText) else v for k, v in found.items()
        }


@pytest.mark.parametrize(
    "line",
    [
        *('{"a": ["0123456789"]}', '{"0123456789": 1}', '["0123456789"]', '{"a": "0123456789'),
        *('{"a": "01234\\ud800"}', '{"a": "0123456\\ud800\\u0041"}', '{"a": "01234\n6789"}'),
        *('{"a": "01234\\u00g06789"}', '{"a": "0123456789\\x"}', '{"a": "0123456789"} {}'),
    ],
)
def test_other_lines_are_left_to_json_loads(line, monkeypatch):
    for module in (long_text, read_policy, json_lines, text_files):
        monkeypatch.setattr(module, "LONG_TEXT_BYTES", 6)
    assert json_lines.parse_long_json(line.encode()) is None
    assert json_lines.parse_long_json(b'{"a": "0123456\xff89"}') is None


def test_errors_of_long_lines_are_those_of_short_ones(tmp_path, held, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "0123456789"}\n{"text": "0123\xff56789"}\n')
    for module in (long_text, read_policy, json_lines, text_files):
        monkeypatch.setattr(module, "LONG_TEXT_BYTES", 6)
    with pytest.raises(DataError, match="byte 37 is not UTF-8"):
        lines(tmp_path / "a.jsonl", held)
    assert lines(tmp_path / "a.jsonl", held, on_error="skip") == ["0123456789"]
    assert lines(tmp_path / "a.jsonl", held, on_error="replace")[1] == "0123\ufffd56789"


HORRIBLE = {
    "nul": "a\x00b\x00",
    "crlf": "one\r\ntwo\rthree\n\n",
    "breaks": "a\x0b\x0c\x1c\x85\u2028\u2029b",
    "inner mark": "a\ufeffb",
    "beyond 16 bits": "\U0001f9ff\U0010ffff",
    "rtl": "\u202eabc\u202c",
    "combining": "Z\u0351\u036b" * 50,
    "escapes": "\\u0041\\n\x1b[31m",
    "huge": "x" * 5_000_000,
    "spaces": "  \t \n",
}


@pytest.mark.parametrize("name", HORRIBLE)
def test_odd_text_comes_out_as_it_went_in(tmp_path, held, name):
    # covers D16
    text = HORRIBLE[name]
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert texts(tmp_path / "a.txt", held) == [text]
    for ascii_only in (True, False):
        line = json.dumps({"text": text}, ensure_ascii=ascii_only)
        (tmp_path / "a.jsonl").write_bytes(line.encode() + b"\r\n")
        assert lines(tmp_path / "a.jsonl", held) == [text]


def test_a_byte_order_mark_is_no_text(tmp_path, held):
    # covers D16
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}\n')
    assert texts(tmp_path / "a.txt", held) == lines(tmp_path / "a.jsonl", held) == ["hello"]


def test_bytes_that_are_not_utf8_follow_the_policy(tmp_path, held):
    # covers D1
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf0123456\xff89--ok--end \xe2\x82")
    found = texts(tmp_path / "a.txt", held, on_error="replace", document_separator="--")
    assert found == ["0123456\ufffd89", "ok", "end \ufffd"]
    tally = ReadStats()
    assert texts(tmp_path / "a.txt", held, tally, on_error="skip", document_separator="--") == [
        "ok"
    ]
    assert tally.skipped == {"train": 2}
    assert not tally.replaced
    with pytest.raises(DataError, match=r"a\.txt: byte 10 is not UTF-8 \(0xff"):
        texts(tmp_path / "a.txt", held, document_separator="--")
    (tmp_path / "a.txt").write_bytes(b"a" * 3_000_000 + b"--" + b"b" * 5 + b"\xc0")
    with pytest.raises(DataError, match="byte 3000007 is not UTF-8"):
        texts(tmp_path / "a.txt", held, document_separator="--")
    (tmp_path / "a.txt").write_bytes("text".encode("utf-16"))
    with pytest.raises(DataError, match="byte 0 .* looks like UTF-16: convert it"):
        texts(tmp_path / "a.txt", held)


def test_bad_lines_follow_the_policy(tmp_path, held):
    # covers D1, D16: broken JSON, missing fields, lone surrogates, nesting without end
    good, path = b'{"text": "good"}\n', tmp_path / "a.jsonl"
    bad = {
        b'{"text": "\xff"}\n': "byte 27 is not UTF-8",
        b'{"text": "a"\n': "line at byte 17 is not JSON",
        b'["text"]\n': "holds list, must hold an object",
        b'{"txt": "a", "id": 1}\n': "no text under 'text'; it holds: txt, id; set data.text_field",
        b'{"text": null}\n': "None under 'text' is no text",
        b'{"text": "a\\ud800b"}\n': r"lone surrogate '\\ud800'",
        b"[" * 100_000 + b"\n": "is not JSON",
    }
    for line, message in bad.items():
        path.write_bytes(good + line + b"\n \n" + good)
        with pytest.raises(DataError, match=message):
            lines(path, held)
        tally = ReadStats()
        assert lines(path, held, tally, on_error="skip") == ["good", "good"]
        assert tally.skipped == {"train": 1}
    path.write_bytes(b'{"text": "a\\ud800b\\ud83d\\ude00\\udc00"}\n')
    assert lines(path, held, tally, on_error="replace") == ["a\ufffdb\U0001f600\ufffd"]
    assert tally.replaced == {"train": 1}


PACK = {
    ".txt": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("suffix", PACK)
def test_compressed_files_are_read_whole(tmp_path, held, suffix):
    rng = random.Random(1)
    text = "".join(rng.choices("abcdefgh \n", k=400_000))
    path = tmp_path / f"a{suffix.upper() if suffix == '.gz' else suffix}"
    halves = (text[:150_000].encode(), text[150_000:].encode())
    path.write_bytes(b"".join(map(PACK[suffix], halves)))  # two members or frames
    assert texts(path, held) == [text]
    if suffix == ".txt":
        return
    path.write_bytes(PACK[suffix](text.encode())[:-20])
    with pytest.raises(DataError, match=f"{path.name} cannot be read"):  # covers D4
        texts(path, held)
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match=f"{path.name} cannot be read"):
        texts(path, held)


BYTES = st.lists(st.sampled_from([b"a", b"b", b"\n"]), max_size=60).map(b"".join)


@given(BYTES, st.sampled_from([b"\n", b"ab", b"aab"]), st.integers(1, 9))
def test_cutting_is_splitting(raw, separator, size):
    blocks = [raw[i : i + size] for i in range(0, len(raw), size)]
    whole = raw.split(separator)
    want = whole[:-1] if not whole[-1] else whole
    found = list(split_by_separator(blocks, separator))
    assert [part for _, part in found] == want
    assert all(raw[offset : offset + len(part)] == part for offset, part in found)


def test_paths_are_files_globs_and_folders(tmp_path, held):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    names = ["deep/b.txt", "deep/er/a.txt", "deep/er/.hidden.txt", "c,d.txt", "e.txt"]
    for name in names:
        (tmp_path / name).write_text(name)
    assert texts(tmp_path / "deep", held) == ["deep/b.txt", "deep/er/a.txt"]
    assert texts(tmp_path / "**" / "a*.txt", held) == ["deep/er/a.txt"]
    assert texts(tmp_path / "c,d.txt", held) == ["c,d.txt"]
    both = f"{tmp_path}/e.txt, {tmp_path}/deep/*.txt,{tmp_path}/e.txt"
    assert texts(both, held) == ["e.txt", "deep/b.txt"]
    with pytest.raises(DataError, match="no file matches"):
        texts(tmp_path / "*.nothing", held)


def test_documents_are_cut_and_limited(tmp_path, held):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree\n\n")
    assert texts(tmp_path / "a.txt", held) == ["one\n\ntwo\n\nthree\n\n"]
    assert texts(tmp_path / "a.txt", held, document_separator="\\n\\n") == ["one", "two", "three"]
    assert texts(tmp_path / "a.txt", held, document_separator="\n\n", max_documents=2) == [
        "one",
        "two",
    ]


def test_one_empty_file_among_many_is_only_reported(tmp_path, held, caplog):
    # covers D2
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text("text")
    assert texts(tmp_path / "?.txt", held) == ["", "text"]
    assert [r.getMessage() for r in caplog.records] == [f"{tmp_path}/a.txt: the file has no text"]


def test_a_file_in_two_splits_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="is in the train and in the valid split"):
        read(source="text", path=f"{tmp_path}/*.txt", valid_path=f"{tmp_path}/a.txt")


SHARES = {"valid": 0.1, "test": 0.2}


def split_of(documents: list[str], shares=SHARES) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for split, text in assign_splits(documents, plan_hold_out(documents, shares)):
        found[split].append(text)
    return found


def test_splits_by_hash_have_their_shares_and_stay():
    documents = [f"document {i}" for i in range(4000)]
    found = split_of(documents)
    assert len(found["valid"]) == pytest.approx(400, abs=80)  # four standard deviations
    assert len(found["test"]) == pytest.approx(800, abs=100)
    others = split_of([f"more {i}" for i in range(500)] + documents[::-1])
    assert all(set(found[split]) <= set(others[split]) for split in found)


@given(st.lists(st.text(max_size=3), min_size=3, max_size=30))
def test_splits_by_hash_lose_nothing_and_share_nothing(documents):
    # covers D15: equal documents are never on both sides
    shares = {"valid": 0.01, "test": 0.01}
    plan = dataclasses.replace(plan_hold_out(documents, shares), by_place=False)
    found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for split, text in assign_splits(documents, plan):
        found[split].append(text)
    assert sorted(sum(found.values(), [])) == sorted(documents)
    kinds = {split: {t for t in found[split] if t} for split in found}
    assert not kinds["train"] & kinds["valid"]
    assert not (kinds["train"] | kinds["valid"]) & kinds["test"]
    if len({d for d in documents if d.strip()}) > 2:
        assert all(kinds.values())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"source": "corpse"}, "did you mean 'corpus'"),
        ({"path": "a.csv"}, "data.path is 'a.csv', but data.source is 'corpus'"),
        ({"path": "folder"}, "set data.source to text, jsonl or datasets"),
        ({"path": "a.jsonl", "adjacent_negatives": 1}, "the source is 'jsonl'"),
        ({"source": "text"}, "'text' needs data.path"),
        ({"source": "datasets", "path": "a/b", "revision": "main"}, "pin the data set to a full"),
        ({"tokenizer": "bpe:many"}, "the size must be 257 to 1048576"),
        ({"tokenizer": "bpe:256"}, "the size must be 257"),
        ({"tokenizer": "bpe:٣٠٠"}, "the size must be 257"),
        ({"tokenizer": f"bpe:{'9' * 5000}"}, "the size must be 257"),
        ({"tokenizer": ""}, "data.tokenizer is empty"),
        ({"valid_share": 0.0}, "valid_share is 0.0, must be > 0"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"cache": ""}, "data.cache is empty"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    # covers C4
    with pytest.raises(ConfigError, match=message):
        DataConfig(**settings)


def test_the_source_follows_from_the_path():
    kinds = {
        "mine.txt": "text",
        "b/*.md": "text",
        "a.txt.gz,b": "text",
        "x.jsonl.zst": "jsonl",
        "x-*.parquet": "datasets",
        "UP.TXT": "text",
        "UP.JSONL.GZ": "jsonl",
        "x/UP.Parquet": "datasets",
        "first, second.md": "text",
        "": "corpus",
    }
    for path, kind in kinds.items():
        assert DataConfig(path=path).kind == kind
    assert DataConfig(path="mine.txt", source="jsonl").kind == "jsonl"


def test_every_suffix_of_a_compression_has_a_decompressor():
    assert tuple(decompression.DECOMPRESSORS) == suffixes.COMPRESSION_SUFFIXES


def test_reading_is_counted_in_bytes_of_the_disk(tmp_path, held):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"text" * 1000))
    tally = ReadStats()
    list(decompression.read_blocks(path, tally))
    assert tally.bytes_read == path.stat().st_size
    source = SOURCES["text"](DataConfig(source="text", path=str(path), **held["text"]))
    assert source.size_bytes == path.stat().st_size + len("valid text") + len("test text")
