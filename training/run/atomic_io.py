"""Reads and writes files that survive a kill: JSON is written whole, torn rows are repaired."""

import contextlib
import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from errors import CheckpointError
from settings.json_types import JsonObject
from storage.disk_errors import disk_errors
from training.run.run_paths import sync_folder
from training.run.strict_json import decode_json, encode_json

MAX_JSON_BYTES = 64 * 2**20  # maximum size of a JSON file
MAX_JSONL_BYTES = 2**30  # maximum size of a file of rows


class FileSeal(TypedDict):
    """The number of bytes of a file, from its beginning, and their hash."""

    size: int
    sha256: str


class JsonlWriter:
    """Appends JSON objects to a file, one per line; opening removes a torn last line."""

    def __init__(self, path: Path):
        self.path = path
        self._mutex = threading.Lock()
        with disk_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
            self._repair_last_line()
            # Of what was written; what the file holds later may differ.
            self._size, self._digest = 0, hashlib.sha256()
            while chunk := os.pread(self._file, 2**20, self._size):
                self._size += len(chunk)
                self._digest.update(chunk)

    def append(self, row: Mapping[str, object]) -> None:
        """Writes one row; if that fails, the file stays as it was.

        Raises:
            OSError: as a DiskError, if the disk is full or has failed.
        """
        line = data = (encode_json(row) + "\n").encode()
        with disk_errors(self.path), self._mutex:
            size = os.fstat(self._file).st_size
            try:
                while data:
                    data = data[os.write(self._file, data) :]
            except OSError:
                os.ftruncate(self._file, size)
                raise
            self._size += len(line)
            self._digest.update(line)

    def seal(self) -> FileSeal:
        """Returns the size and the hash of what was written, the rows before included."""
        with self._mutex:
            return {"size": self._size, "sha256": self._digest.hexdigest()}

    def sync(self) -> None:
        """Waits until every row is on the disk."""
        with disk_errors(self.path):
            os.fsync(self._file)

    def close(self) -> None:
        """Closes the file; a second call has no effect."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _repair_last_line(self) -> None:
        size = end = os.fstat(self._file).st_size
        complete = 0  # number of bytes up to the end of the last complete line
        while end and not complete:
            start = max(0, end - 2**16)
            complete = os.pread(self._file, end - start, start).rfind(b"\n") + 1
            complete, end = start + complete if complete else 0, start
        if complete == size:
            return
        try:
            if size - complete > MAX_JSON_BYTES:
                raise ValueError("the line is longer than any row")
            decode_json(os.pread(self._file, size - complete, complete).decode())
            os.write(self._file, b"\n")  # only the line's end is missing
        except ValueError:
            os.ftruncate(self._file, complete)


def read_jsonl(path: Path, max_bytes: int = MAX_JSONL_BYTES) -> list[JsonObject]:
    """Returns all rows of `path`, [] if it does not exist; a torn last line is ignored.

    Raises:
        CheckpointError: if another line is damaged, or the file is larger than `max_bytes`.
    """
    text = _read_text(path, max_bytes)
    if text is None:
        return []
    lines = text.split("\n")
    last_line = lines.pop()  # "" if the file ends with a complete line
    rows = [_parse_line(line, path, n) for n, line in enumerate(lines, 1)]
    with contextlib.suppress(CheckpointError):
        rows += [_parse_line(last_line, path, len(lines) + 1)] if last_line else []
    return rows


def write_json(path: Path, value: object) -> None:
    """Writes `value` atomically: to a temporary file, fsync, rename, fsync of the folder."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(file, "w") as stream:
                os.fchmod(file, 0o644)
                stream.write(encode_json(value, indent=1) + "\n")
                stream.flush()
                os.fsync(file)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        sync_folder(path.parent)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> JsonObject | None:
    """Returns the JSON object in `path`, None if it does not exist.

    Raises CheckpointError if the file is damaged, holds no object, or exceeds `max_bytes`.
    """
    text = _read_text(path, max_bytes)
    return None if text is None else _parse_line(text, path, 1)


def _read_text(path: Path, max_bytes: int) -> str | None:
    with disk_errors(path):
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} is not a regular file; move it away")
            size = status.st_size
            data = path.read_bytes() if size <= max_bytes else b""
        except (FileNotFoundError, NotADirectoryError):
            return None
    if size > max_bytes:
        raise CheckpointError(f"{path} has {size} bytes; at most {max_bytes} are read")
    return data.decode(errors="replace")  # so that the parser reports a bad byte with its line


def _parse_line(text: str, path: Path, line: int) -> JsonObject:
    try:
        row = decode_json(text)
        problem = None if isinstance(row, dict) else "not an object"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise CheckpointError(f"{path} line {line} is damaged: {problem}")
    return row
