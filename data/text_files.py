"""Text files: reading of plain or compressed bytes, cutting into documents and decoding.

No character is translated: line ends, NULs and unusual code points stay as they are. Only a UTF-8
byte order mark at the start of a file is dropped, since it is a signature and not text.
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
from typing import BinaryIO, NamedTuple

import zstandard

from errors import ConfigError, DataError
from settings.json_types import JsonObject

BOM = b"\xef\xbb\xbf"
BLOCK_BYTES = 1 << 20


def expand_user(path: str, setting: str) -> Path:
    """Returns `path`, the value of `setting`, with ~ replaced by the home folder.

    Raises:
        ConfigError: if the user after ~ does not exist.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{setting} is {path!r}: there is no such user; write the full path"
        ) from error


@dataclass
class ReadStats:
    """Statistics of a pass over a source: bytes read from disk, unreadable documents by split."""

    bytes_read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class ErrorPolicy:
    """A policy for documents that cannot be read; `split` is where they are counted."""

    on_error: str  # strict, replace or skip
    split: str
    stats: ReadStats
    setting_prefix: str = "data."  # Prefix of the names of settings in messages.

    def reject_document(self, message: str) -> None:
        """Counts the document as skipped if the policy is skip.

        Raises:
            DataError: under every other policy.
        """
        if self.on_error != "skip":
            raise DataError(message)
        self.stats.skipped[self.split] += 1

    def decode(self, raw: bytes, path: Path, offset: int) -> str | None:
        """Returns the text of `raw`, which is at `offset` in the file, or None if skipped."""
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            if self.on_error == "replace":
                self.stats.replaced[self.split] += 1
                return raw.decode(errors="replace")
            utf16 = offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff")
            setting = f"{self.setting_prefix}on_error"
            hint = f"convert it, or set {setting} to replace or skip"
            if utf16:
                hint = f"it looks like UTF-16: convert it, or set {setting} to skip"
            self.reject_document(
                f"{path}: byte {offset + error.start} is not UTF-8 "
                f"(0x{raw[error.start]:02x}: {error.reason}); {hint}"
            )
            return None

    def check_unicode(self, text: str, location: str) -> str | None:
        """Returns `text` without lone surrogates, which JSON allows, or None if it is skipped."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if self.on_error == "replace":
                self.stats.replaced[self.split] += 1
                return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            self.reject_document(
                f"{location}: character {error.start} is the lone surrogate "
                f"{ascii(text[error.start])}; set {self.setting_prefix}on_error to replace or skip"
            )
            return None
        return text


class JsonLine(NamedTuple):
    """A line of JSON: its offset, the raw line, the parsed object, and the object's text."""

    offset: int
    raw: str
    record: JsonObject
    text: str


def iter_texts(path: Path, separator: bytes, policy: ErrorPolicy) -> Iterator[tuple[int, str]]:
    """Yields the documents of a text file with offsets; without separator, the file is one."""
    for offset, raw in split_by_separator(read_blocks(path, policy.stats), separator):
        if offset == 0 and raw.startswith(BOM):
            offset, raw = len(BOM), raw.removeprefix(BOM)
        text = policy.decode(raw, path, offset)
        if text is not None:
            yield offset, text


def iter_json_texts(path: Path, text_field: str, policy: ErrorPolicy) -> Iterator[JsonLine]:
    """Yields the lines of a file of JSON lines that have a text in `text_field`."""
    for offset, line, record in iter_json(path, policy):
        location = format_location(path, offset)
        if not isinstance(record.get(text_field), str):
            fields = ", ".join(list(record)[:8])
            policy.reject_document(
                f"{location}: no text under {text_field!r}; set {policy.setting_prefix}text_field; "
                f"the line holds: {fields}"
            )
            continue
        text = policy.check_unicode(record[text_field], location)
        if text is not None:
            yield JsonLine(offset, line, record, text)


def iter_json(path: Path, policy: ErrorPolicy) -> Iterator[tuple[int, str, JsonObject]]:
    """Yields the objects of a file of JSON lines: offset, raw line, parsed object."""
    for offset, raw in split_by_separator(read_blocks(path, policy.stats), b"\n"):
        line = policy.decode(raw, path, offset) if raw.strip() else None
        if line is None:
            continue
        location = format_location(path, offset)
        hint = f"correct it or set {policy.setting_prefix}on_error to skip"
        try:
            record = json.loads(line.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            policy.reject_document(f"{location} is not JSON ({error}); {hint}")
            continue
        if isinstance(record, dict):
            yield offset, line, record
        else:
            policy.reject_document(
                f"{location} holds {type(record).__name__}, must hold an object; {hint}"
            )


def format_location(path: Path, offset: int) -> str:
    """Returns the description of a line for messages."""
    return f"{path}: the line at byte {offset}"


def expand_globs(patterns: str) -> list[Path]:
    """Returns the files of `patterns`: files, globs and folders, separated by commas.

    Raises:
        DataError: if a pattern matches no file.
    """
    # The name of one file may contain a comma.
    is_one_file = os.path.exists(expand_user(patterns, "data.path"))
    names = [patterns] if is_one_file else patterns.split(",")
    paths: dict[Path, None] = {}
    for name in filter(None, map(str.strip, names)):
        path = expand_user(name, "data.path")
        literal = os.path.exists(path)
        matches = [path] if literal else map(Path, glob.glob(str(path), recursive=True))
        files = sorted(file for match in matches for file in _iter_files(match))
        if not files:
            raise DataError(f"no file matches {name!r}; paths are relative to {Path.cwd()}")
        paths.update(dict.fromkeys(files))
    return list(paths)


def read_blocks(path: Path, stats: ReadStats) -> Iterator[bytes]:
    """Yields the content of `path` in blocks, decompressed according to its suffix.

    Raises:
        DataError: if the file is damaged or cannot be read.
    """
    bytes_before = stats.bytes_read
    try:
        with path.open("rb") as raw:
            for block in DECOMPRESSORS.get(path.suffix.lower(), _read_plain)(raw):
                stats.bytes_read = bytes_before + raw.tell()
                yield block
    except (EOFError, OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path} cannot be read: {error or type(error).__name__}") from error


def split_by_separator(blocks: Iterable[bytes], separator: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the parts between separators with their offsets; without separator, one part.

    A separator at the end of the file starts no further part. One part is in memory at a time.
    """
    if not separator:
        yield 0, b"".join(blocks)
        return
    offset, scanned, buffer = 0, 0, bytearray()
    for block in blocks:
        buffer += block
        start = 0
        while (end := buffer.find(separator, max(start, scanned))) >= 0:
            yield offset + start, bytes(buffer[start:end])
            start = end + len(separator)
        del buffer[:start]
        offset += start
        scanned = max(0, len(buffer) - len(separator) + 1)
    if buffer:
        yield offset, bytes(buffer)


def _iter_files(path: Path) -> Iterator[Path]:
    """Yields the file itself, or every file below a folder except hidden ones."""
    if path.is_dir():
        for file in path.rglob("*"):
            if file.is_file() and not any(p[0] == "." for p in file.relative_to(path).parts):
                yield file
    elif path.exists():
        yield path


def _read_plain(raw: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: raw.read(BLOCK_BYTES), b"")


def _read_compressed(opener: Callable, raw: BinaryIO) -> Iterator[bytes]:
    with opener(raw) as stream:
        yield from _read_plain(stream)


def _read_zstd(raw: BinaryIO) -> Iterator[bytes]:
    """Yields the content of all frames of a file.

    The reader of the zstandard library accepts a truncated file without an error.

    Raises:
        EOFError: if the last frame is truncated.
    """
    frame = None
    for block in iter(lambda: raw.read(BLOCK_BYTES >> 6), b""):
        while block:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(block)
            block = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("the last zstd frame ends early")


DECOMPRESSORS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    ".gz": functools.partial(_read_compressed, gzip.open),
    ".bz2": functools.partial(_read_compressed, bz2.open),
    ".xz": functools.partial(_read_compressed, lzma.open),
    ".zst": _read_zstd,
}
