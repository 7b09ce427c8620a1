"""The decompressed bytes of a file in blocks, and the damage that its checksum shows."""

import bz2
import functools
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from data.readers.read_stats import ReadStats
from data.readers.suffixes import ARCHIVE_SUFFIXES, is_compressed, suffix_of
from errors import DataError

BLOCK_BYTES = 1 << 20


def read_blocks(path: Path, stats: ReadStats) -> Iterator[bytes]:
    """Yields the content of `path` in blocks, decompressed according to its suffix.

    Raises:
        DataError: if the file is damaged or cannot be read.
    """
    bytes_before = stats.bytes_read
    check_not_archive(path)
    try:
        with path.open("rb") as raw:
            for block in DECOMPRESSORS.get(path.suffix.lower(), _read_plain)(raw):
                stats.bytes_read = bytes_before + raw.tell()
                yield block
    except READ_ERRORS as error:
        strerror = error.strerror if isinstance(error, OSError) else ""
        reason = strerror or str(error) or type(error).__name__
        raise DataError(
            f"{path} cannot be read: {reason}; replace it, or set on_error to skip"
        ) from error


def check_not_archive(path: Path) -> None:
    """Refuses archives of several files, compressed or not.

    Raises:
        DataError: if the suffix is that of an archive.
    """
    if suffix_of(path) in ARCHIVE_SUFFIXES:
        raise DataError(f"{path} is an archive of files; unpack it and name its folder")


@functools.lru_cache(maxsize=1 << 16)
def _find_damage(path: Path, size: int, mtime_ns: int) -> str:
    try:
        for _ in read_blocks(path, ReadStats()):
            if not is_compressed(path):
                break  # A plain file can be opened; it has no checksum.
    except DataError as error:
        return str(error)
    return ""


def find_damage(path: Path) -> str:
    """Returns why a file cannot be read whole, "" if it can.

    A compressed file is read to its end, where its checksum is. What was read before a failure may
    be garbage.
    """
    try:
        status = path.stat()
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return _find_damage(path, status.st_size, status.st_mtime_ns)


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


# gzip and bz2 raise EOFError and OSError, the others have errors of their own.
READ_ERRORS = (EOFError, OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError)
DECOMPRESSORS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {  # for COMPRESSION_SUFFIXES
    ".gz": functools.partial(_read_compressed, gzip.open),
    ".bz2": functools.partial(_read_compressed, bz2.open),
    ".xz": functools.partial(_read_compressed, lzma.open),
    ".zst": _read_zstd,
}
