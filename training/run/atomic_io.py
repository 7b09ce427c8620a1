"""Reads and writes files that survive a kill: JSON is written atomically, torn rows are repaired.

JSON has no NaN and no infinity: they are written as the strings "NaN", "Infinity" and "-Infinity",
which `from_json_number` converts back. Links inside a run folder are never followed.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from errors import CheckpointError, ConfigError, DiskError
from settings.json_types import JsonObject

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
RESERVED_NAMES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10)),
}
STAGE_PREFIX = ".stage."  # of the folder whose files appear together
GLOB_CHARACTERS = "*?[]\\"
NONFINITE_STRINGS = ("NaN", "Infinity", "-Infinity")
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


def encode_json(value: object, indent: int | None = None) -> str:
    """Returns `value` as strict JSON text; see `to_json_value`."""
    return json.dumps(to_json_value(value), allow_nan=False, indent=indent)


def decode_json(text: str) -> Any:
    """Parses strict JSON: NaN, Infinity and repeated keys are errors.

    Raises:
        ValueError: if the text is not strict JSON or is nested too deep.
    """
    try:
        return json.loads(
            text, parse_constant=_reject_constant, object_pairs_hook=_reject_duplicate_keys
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def to_json_value(value: object) -> Any:
    """Converts `value` for JSON: dataclasses to objects, tuples to lists, numpy to numbers.

    Raises:
        TypeError: if a value has no form in JSON.
    """
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): to_json_value(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json_value(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json_value(value.__dict__[f.name]) for f in dataclasses.fields(value)}
    if isinstance(value, (np.generic, np.ndarray)):
        return to_json_value(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def from_json_number(value: object) -> object:
    """Returns `value`; a string that stands for a non-finite number becomes that number."""
    return float(value) if isinstance(value, str) and value in NONFINITE_STRINGS else value


def validate_name(name: str, label: str) -> str:
    """Returns `name` if it may become a file name; `label` is its role in the error message.

    Raises:
        ConfigError: if the name is reserved or has other characters than a file name may have.
    """
    if not NAME_PATTERN.fullmatch(name) or name.split(".")[0].lower() in RESERVED_NAMES:
        raise ConfigError(
            f"{label} is {name!r}; a name has 1 to 128 letters, digits, '.', '_' or '-', begins "
            "with a letter or digit, and is not reserved by an operating system"
        )
    return name


def validate_run_path(path: Path) -> Path:
    """Returns the path of a run folder if checkpoints can be written below it.

    Orbax merges the arrays of all processes by a glob over the absolute path. The path is also part
    of messages and of JSON.

    Raises:
        ConfigError: if it has characters of a glob, control characters, or is no UTF-8.
    """
    text = str(path.absolute())
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(text).decode(errors="backslashreplace")
        raise ConfigError(
            f"--workdir: the path {shown} is not UTF-8, which JSON files cannot hold; use another "
            "path"
        ) from None
    if characters := sorted({c for c in text if c in GLOB_CHARACTERS or ord(c) < 32}):
        raise ConfigError(
            f"--workdir: the path {text!r} has {' '.join(map(repr, characters))}, with which "
            "checkpoints cannot be written; use a path without * ? [ ] \\ and control characters"
        )
    return path


def safe_join(root: Path, *parts: str) -> Path:
    """Returns `root/parts...`, which is guaranteed to lie inside `root`.

    Raises:
        DiskError: if a part is a link or would leave `root`.
    """
    path = root
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "\0" in part:
            raise DiskError(f"{part!r} is not a valid file name in {root}")
        path = path / part
        if path.is_symlink():
            raise DiskError(f"{path} is a link, which is not followed; put the real folder there")
    return path


def remove_tree(path: Path, root: Path) -> None:
    """Deletes the folder `path`, a direct child of `root`; it never follows a link."""
    with disk_errors(path):
        shutil.rmtree(safe_join(root, path.relative_to(root).as_posix()))


def check_writable(folder: Path) -> None:
    """Creates `folder` if necessary, and checks that files can be created in it.

    A command that computes for long calls this before it computes what it will write.

    Raises:
        OSError: as a DiskError, if they cannot.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
        os.close(file)
        os.unlink(name)


@contextlib.contextmanager
def staged_folder(target: Path) -> Generator[Path, None, None]:
    """Yields an empty folder whose files move to the folder `target` when the body ends.

    If the body fails, its files are deleted, and `target` is as it was before, or empty. A process
    that was killed leaves its folder, which the next call for `target` deletes.

    Raises:
        OSError: as a DiskError, if the files cannot be written or moved.
    """
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for path in target.glob(f"{STAGE_PREFIX}*"):
            with contextlib.suppress(OSError), _locked_folder(path):  # locked: its owner is alive
                shutil.rmtree(path, ignore_errors=True)
        stage = Path(tempfile.mkdtemp(prefix=STAGE_PREFIX, dir=target))
        try:
            with _locked_folder(stage):
                yield stage
                for path in sorted(stage.iterdir()):
                    os.replace(path, target / path.name)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def _locked_folder(path: Path) -> Generator[None, None, None]:
    """Holds the lock of a folder, which ends with its process.

    Raises:
        BlockingIOError: if a process that is alive holds it.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(folder)


def sync_folder(path: Path) -> None:
    """Makes renames inside `path` durable."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def disk_errors(path: Path) -> Generator[None, None, None]:
    """Turns an OSError on `path` into a DiskError.

    Raises:
        DiskError: if the body raises an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{error.filename or path}: {error.strerror or error}; free space, check permissions "
            "or use another folder"
        ) from error


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


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    items = dict(pairs)
    if len(items) < len(pairs):
        raise ValueError("a key occurs twice")
    return items
