"""Files that survive a kill: JSON written whole or not at all, rows that are repaired when torn.

JSON has no NaN and no infinity: they are written as the strings "NaN", "Infinity" and "-Infinity",
which `float` reads back (`number`). A link below the folder in hand is never followed.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from errors import CheckpointError, ConfigError, DiskError

SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
RESERVED = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}
SPECIAL = ("NaN", "Infinity", "-Infinity")
WHOLE_LIMIT = 64 * 2**20  # bytes of a file that is read in one piece
ROWS_LIMIT = 2**30


class Rows:
    """A file of one JSON object a line, to append to; opening cuts off a line that a kill tore."""

    def __init__(self, path: Path):
        self.path = path
        self._mutex = threading.Lock()
        with disk(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
            self._repair()

    def append(self, row: Mapping[str, Any]) -> None:
        data = (encode(row) + "\n").encode()
        with disk(self.path), self._mutex:
            size = os.fstat(self._file).st_size
            try:
                while data:
                    data = data[os.write(self._file, data) :]
            except OSError:
                os.ftruncate(self._file, size)
                raise

    def sync(self) -> None:
        """Wait until every row is on the disk."""
        with disk(self.path):
            os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _repair(self) -> None:
        size = end = os.fstat(self._file).st_size
        whole = 0  # bytes up to the last line's end
        while end and not whole:
            start = max(0, end - 2**16)
            whole = os.pread(self._file, end - start, start).rfind(b"\n") + 1
            whole, end = start + whole if whole else 0, start
        if whole == size:
            return
        try:
            if size - whole > WHOLE_LIMIT:
                raise ValueError("no row is as long")
            decode(os.pread(self._file, size - whole, whole).decode())
            os.write(self._file, b"\n")  # whole but for its end
        except ValueError:
            os.ftruncate(self._file, whole)


def read_rows(path: Path, limit: int = ROWS_LIMIT) -> list[dict[str, Any]]:
    """All rows of `path`, [] without the file; a torn last one is left out, another an error."""
    text = _read(path, limit)
    if text is None:
        return []
    lines = text.split("\n")
    torn = lines.pop()  # "" when the last line is whole
    rows = [_row(line, path, n) for n, line in enumerate(lines, 1)]
    with contextlib.suppress(CheckpointError):
        rows += [_row(torn, path, len(lines) + 1)] if torn else []
    return rows


def write_json(path: Path, value: Any) -> None:
    """Write `value`, or leave what was there: to another file, fsync, rename, fsync the folder."""
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(file, "w") as stream:
                os.fchmod(file, 0o644)
                stream.write(encode(value, indent=1) + "\n")
                stream.flush()
                os.fsync(file)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        sync_folder(path.parent)


def read_json(path: Path, limit: int = WHOLE_LIMIT) -> dict[str, Any] | None:
    """The JSON object in `path`, None without the file; anything else is a CheckpointError."""
    text = _read(path, limit)
    return None if text is None else _row(text, path, 1)


def encode(value: Any, indent: int | None = None) -> str:
    return json.dumps(plain(value), allow_nan=False, indent=indent)


def decode(text: str) -> Any:
    """Strict JSON: ValueError on NaN, Infinity and repeated keys, and on what nests too deep."""
    try:
        return json.loads(text, parse_constant=_constant, object_pairs_hook=_pairs)
    except RecursionError:
        raise ValueError("nested too deep") from None


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: dataclasses as objects, tuples as lists, numpy as numbers."""
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(value.__dict__[f.name]) for f in dataclasses.fields(value)}
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def number(value: Any) -> Any:
    """`value` back from JSON: the strings that stand for non-finite numbers become numbers."""
    return float(value) if isinstance(value, str) and value in SPECIAL else value


def slug(name: str, what: str) -> str:
    """`name` if it may become a file name, else a ConfigError on `what`."""
    if not SLUG.fullmatch(name) or name.split(".")[0].lower() in RESERVED:
        raise ConfigError(
            f"{what} is {name!r}; a name has 1 to 128 letters, digits, '.', '_' or '-', and begins "
            "with a letter or digit"
        )
    return name


def inside(root: Path, *parts: str) -> Path:
    """`root/parts...`, with a DiskError where a part below `root` is a link or steps out of it."""
    path = root
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "\0" in part:
            raise DiskError(f"{part!r} is no name for a file in {root}")
        path = path / part
        if path.is_symlink():
            raise DiskError(f"{path} is a link, which is not followed; put the real folder there")
    return path


def remove_tree(path: Path, root: Path) -> None:
    """Delete the folder `path`, a direct child of `root`; a link is refused, none is followed."""
    with disk(path):
        shutil.rmtree(inside(root, path.relative_to(root).as_posix()))


def sync_folder(path: Path) -> None:
    """Make renames in `path` durable."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn what the operating system says about `path` into a DiskError."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{error.filename or path}: {error.strerror or error}; free space, check permissions "
            "or use another --workdir"
        ) from error


def _read(path: Path, limit: int) -> str | None:
    with disk(path):
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(f"{path} is no regular file; move it away")
            size = found.st_size
            data = path.read_bytes() if size <= limit else b""
        except (FileNotFoundError, NotADirectoryError):
            return None
    if size > limit:
        raise CheckpointError(f"{path} has {size} bytes; at most {limit} are read")
    return data.decode(errors="replace")  # a bad byte is then an error of the line it stands in


def _row(text: str, path: Path, line: int) -> dict[str, Any]:
    try:
        row = decode(text)
        problem = None if isinstance(row, dict) else "not an object"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise CheckpointError(f"{path} line {line} is damaged: {problem}")
    return row


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) < len(pairs):
        raise ValueError("a key stands twice")
    return items
