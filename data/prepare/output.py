"""The output of a preparation: files of lines, in a folder that appears when it is complete."""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

import zstandard

from data.prepare.journal import has_parts
from errors import LockedError
from settings.json_types import JsonObject

LOG = logging.getLogger(__name__)


class LineWriter(contextlib.AbstractContextManager):
    """A file of lines, compressed if its name ends in .zst.

    A compressed file contains the checksum of its content, which every reader compares.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.n_lines = path, 0
        self.raw: BinaryIO = path.open("wb")
        self.file: BinaryIO = self.raw
        if path.suffix == ".zst":
            compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
            self.file = compressor.stream_writer(self.raw, closefd=False)

    def write(self, line: str) -> None:
        """Writes a line."""
        self.file.write(line.encode())
        self.file.write(b"\n")
        self.n_lines += 1

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.raw.close()

    def describe(self) -> JsonObject:
        """Returns name, lines, bytes and checksum of the closed file."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self.path.stat().st_size
        return {"file": self.path.name, "lines": self.n_lines, "bytes": size, "sha256": digest}


@contextlib.contextmanager
def partial_folder(out: Path) -> Generator[Path, None, None]:
    """Locks a folder beside `out` and yields it; it is deleted unless it has results to keep."""
    partial = partial_path(out)
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        _lock(descriptor, out)
        try:
            yield partial
        finally:
            if not has_parts(partial):
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(descriptor)


def partial_path(out: Path) -> Path:
    """Returns the folder of an unfinished preparation."""
    return out.with_name(f"{out.name}.partial")


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(
            f"another process prepares {out}; wait for it or choose another folder"
        ) from error
    except OSError:
        LOG.warning(
            "%s: the file system has no locks; no other process must write this folder", out
        )
