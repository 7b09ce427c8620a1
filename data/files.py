"""Bytes of a file, plain or compressed, cut into documents and decoded under a policy.

Nothing is translated: line ends, NULs and odd code points come out as they went in. Only a UTF-8
byte order mark at the start of a file is dropped, being a signature and no text.
"""

import bz2
import functools
import glob
import gzip
import json
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import zstandard

from errors import ConfigError, DataError

BOM = b"\xef\xbb\xbf"
BLOCK = 1 << 20


def home(path: str, key: str) -> Path:
    """`path`, the value of the setting `key`, with ~ as the folder that it stands for."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key} is {path!r}: there is no such user; write the folder") from error


@dataclass
class Tally:
    """What a pass over a source met: bytes read from disk, and documents by split."""

    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Policy:
    """What becomes of a document that cannot be read as it is; `split` is where it is counted."""

    errors: str  # strict, replace, skip
    split: str
    tally: Tally
    prefix: str = "data."  # of the settings that messages name

    def refuse(self, message: str) -> None:
        """Raise under every policy but skip, under which the document is counted and left out."""
        if self.errors != "skip":
            raise DataError(message)
        self.tally.skipped[self.split] += 1

    def decode(self, raw: bytes, path: Path, offset: int) -> str | None:
        """The text of `raw`, which stands at `offset` in the file; None: skipped."""
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            if self.errors == "replace":
                self.tally.replaced[self.split] += 1
                return raw.decode(errors="replace")
            utf16 = offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff")
            way = f"set {self.prefix}errors to replace"
            way = "it looks like UTF-16: convert it" if utf16 else f"or {way}"
            self.refuse(
                f"{path}: byte {offset + error.start} is not UTF-8 "
                f"(0x{raw[error.start]:02x}: {error.reason}); {way}, or to skip"
            )
            return None

    def wellformed(self, text: str, where: str) -> str | None:
        """`text` if it is encodable: JSON can spell lone surrogates; None: skipped."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if self.errors == "replace":
                self.tally.replaced[self.split] += 1
                return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            self.refuse(
                f"{where}: character {error.start} is the lone surrogate "
                f"{ascii(text[error.start])}; set {self.prefix}errors to replace or skip"
            )
            return None
        return text


class Line(NamedTuple):
    """A line of JSON: where it begins, how it is written, what it holds, and its text."""

    offset: int
    raw: str
    record: dict[str, Any]
    text: str


def texts(path: Path, separator: bytes, policy: Policy) -> Iterator[tuple[int, str]]:
    """The documents of a text file, each with its offset; no separator: the whole as one."""
    for offset, raw in cut(chunks(path, policy.tally), separator):
        if offset == 0 and raw.startswith(BOM):
            offset, raw = len(BOM), raw.removeprefix(BOM)
        text = policy.decode(raw, path, offset)
        if text is not None:
            yield offset, text


def lines(path: Path, name: str, policy: Policy) -> Iterator[Line]:
    """The lines of a file of JSON lines that hold a text under `name`."""
    for offset, line, record in objects(path, policy):
        where = at(path, offset)
        if not isinstance(record.get(name), str):
            held = ", ".join(list(record)[:8])
            rule = f"no text under {name!r}; set {policy.prefix}field; the line holds: {held}"
            policy.refuse(f"{where}: {rule}")
            continue
        text = policy.wellformed(record[name], where)
        if text is not None:
            yield Line(offset, line, record, text)


def objects(path: Path, policy: Policy) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The objects of a file of JSON lines: offset of the line, how it is written, what it holds."""
    for offset, raw in cut(chunks(path, policy.tally), b"\n"):
        line = policy.decode(raw, path, offset) if raw.strip() else None
        if line is None:
            continue
        where, way = at(path, offset), f"mend it or set {policy.prefix}errors to skip"
        try:
            record = json.loads(line.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            policy.refuse(f"{where} is not JSON ({error}); {way}")
            continue
        if isinstance(record, dict):
            yield offset, line, record
        else:
            policy.refuse(f"{where} holds {type(record).__name__}, must hold an object; {way}")


def at(path: Path, offset: int) -> str:
    return f"{path}: the line at byte {offset}"


def expand(patterns: str) -> list[Path]:
    """The files that `patterns` names: files, globs and folders, separated by commas."""
    whole = os.path.exists(home(patterns, "data.path"))  # a name may hold a comma
    names = [patterns] if whole else patterns.split(",")
    found: dict[Path, None] = {}
    for name in filter(None, map(str.strip, names)):
        path = home(name, "data.path")
        literal = os.path.exists(path)
        matches = [path] if literal else map(Path, glob.glob(str(path), recursive=True))
        files = sorted(file for match in matches for file in _within(match))
        if not files:
            raise DataError(f"no file matches {name!r}; paths are relative to {Path.cwd()}")
        found.update(dict.fromkeys(files))
    return list(found)


def chunks(path: Path, tally: Tally) -> Iterator[bytes]:
    """The content of `path` in blocks, unpacked by its suffix; damage is a DataError."""
    before = tally.read
    try:
        with path.open("rb") as raw:
            for block in UNPACK.get(path.suffix.lower(), _plain)(raw):
                tally.read = before + raw.tell()
                yield block
    except (EOFError, OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path} cannot be read: {error or type(error).__name__}") from error


def cut(blocks: Iterable[bytes], separator: bytes) -> Iterator[tuple[int, bytes]]:
    """The parts between separators with their offsets; no separator: the whole as one part.

    A separator that ends the file opens no further part. Holds one part in memory.
    """
    if not separator:
        yield 0, b"".join(blocks)
        return
    offset, scanned, rest = 0, 0, bytearray()
    for block in blocks:
        rest += block
        start = 0
        while (end := rest.find(separator, max(start, scanned))) >= 0:
            yield offset + start, bytes(rest[start:end])
            start = end + len(separator)
        del rest[:start]
        offset += start
        scanned = max(0, len(rest) - len(separator) + 1)
    if rest:
        yield offset, bytes(rest)


def _within(path: Path) -> Iterator[Path]:
    """The file itself, or every file below a folder; hidden ones are left out."""
    if path.is_dir():
        for file in path.rglob("*"):
            if file.is_file() and not any(p[0] == "." for p in file.relative_to(path).parts):
                yield file
    elif path.exists():
        yield path


def _plain(raw: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: raw.read(BLOCK), b"")


def _packed(opener: Callable, raw: BinaryIO) -> Iterator[bytes]:
    with opener(raw) as stream:
        yield from _plain(stream)


def _zstd(raw: BinaryIO) -> Iterator[bytes]:
    """All frames of a file. zstandard's own reader ends a truncated file without a word."""
    frame = None
    for block in iter(lambda: raw.read(BLOCK >> 6), b""):
        while block:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(block)
            block = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("the last zstd frame ends early")


UNPACK: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    ".gz": functools.partial(_packed, gzip.open),
    ".bz2": functools.partial(_packed, bz2.open),
    ".xz": functools.partial(_packed, lzma.open),
    ".zst": _zstd,
}
