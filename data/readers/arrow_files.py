"""Parquet and Arrow files on disk, as records, without a network; needs `pyarrow`.

A folder is one that `datasets.save_to_disk` wrote, or one with files of either format. A part of a
file's path names its split, as in `train/data-00000-of-00001.arrow` or `validation-0.parquet`. If
no part names a split, all files are training data.
"""

import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.readers import input_files
from data.readers.read_policy import ErrorPolicy
from data.readers.suffixes import ARROW_SUFFIXES
from errors import DataError
from settings.json_types import JsonObject
from storage.paths import expand_user

CACHE_PREFIX = "cache-"  # Arrow files that `datasets.map` leaves in its folders.
SPLIT_NAMES = ("train", "valid", "validation", "val", "dev", "test")
BATCH_ROWS = 1000


def is_local(path: str) -> bool:
    """Returns whether `path` names files on this machine rather than a data set of the hub."""
    names = [path, *path.split(",")]
    paths = [expand_user(name.strip(), "data.path") for name in names if name.strip()]
    return any(p.suffix.lower() in ARROW_SUFFIXES or p.is_absolute() or p.exists() for p in paths)


def find_split(path: str, split: str) -> list[Path]:
    """Returns the files of a split.

    Args:
        path: Files, globs and folders, as in `input_files.find_files`.
        split: The name of a split.

    Raises:
        DataError: if there is no such file.
    """
    paths = input_files.find_files(path).paths
    files = [
        p
        for p in paths
        if p.suffix.lower() in ARROW_SUFFIXES and not p.name.startswith(CACHE_PREFIX)
    ]
    by_name = {name: [p for p in files if _names(p, name)] for name in {split, *SPLIT_NAMES}}
    if by_name[split]:
        return by_name[split]
    named = {p for listed in by_name.values() for p in listed}
    unnamed = ([p for p in files if p not in named] or files) if split == "train" else []
    if not unnamed:
        names = ", ".join(name for name, listed in by_name.items() if listed) or "none"
        raise DataError(
            f"{path}: no {' or '.join(ARROW_SUFFIXES)} file of the split {split!r} (splits there: "
            f"{names}); set data.path, valid_path or test_path to what is there"
        )
    return unnamed


def iter_records(
    paths: list[Path], columns: tuple[str, ...], policy: ErrorPolicy
) -> Iterator[tuple[str, JsonObject]]:
    """Yields the records of files with their locations.

    Args:
        paths: The files.
        columns: The columns to read, if a file has them; (): all columns.
        policy: The policy for damaged files.
    """
    for path in paths:
        damage = _find_damage(path, path.stat().st_mtime_ns) if policy.on_error == "skip" else ""
        if damage:
            policy.reject_file(damage)
            continue
        row = 0
        for batch in _iter_batches(path, columns, policy):
            for record in batch:
                yield f"{path}, record {row}", record
                row += 1


def _names(path: Path, split: str) -> bool:
    """Returns whether the folder or the beginning of the name of a file is that of a split."""
    pattern = rf"{re.escape(split)}($|[^a-zA-Z])"
    return any(re.match(pattern, part) for part in (path.parent.name, path.name))


@functools.lru_cache(maxsize=1 << 16)
def _find_damage(path: Path, mtime_ns: int) -> str:
    """Returns why a file cannot be read whole, "" if it can."""
    del mtime_ns  # Of the key: a changed file is read again.
    try:
        for _ in _iter_batches(path, (), None):
            pass
    except DataError as error:
        return str(error)
    return ""


def _iter_batches(
    path: Path, columns: tuple[str, ...], policy: ErrorPolicy | None
) -> Iterator[list[JsonObject]]:
    """Yields the records of one file in batches.

    Raises:
        DataError: if the file is damaged.
    """
    pyarrow = _import("pyarrow")
    try:
        with path.open("rb") as raw:
            for batch in _open(path, raw, columns):
                yield batch.to_pylist()
                if policy:
                    policy.stats.bytes_read = max(policy.stats.bytes_read, raw.tell())
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(
            f"{path} cannot be read: {reason}; replace it, or set data.on_error to skip"
        ) from error


def _open(path: Path, raw: Any, columns: tuple[str, ...]) -> Iterator[Any]:
    if path.suffix.lower() == ".parquet":
        file = _import("pyarrow.parquet").ParquetFile(raw)
        names = [name for name in columns if name in file.schema_arrow.names]
        yield from file.iter_batches(BATCH_ROWS, columns=names or None)
        return
    ipc = _import("pyarrow.ipc")
    # `save_to_disk` writes the stream format, other programs the file format.
    magic = raw.read(6)
    raw.seek(0)
    reader = ipc.open_file(raw) if magic == b"ARROW1" else None
    batches = (
        (reader.get_batch(i) for i in range(reader.num_record_batches))
        if reader
        else ipc.open_stream(raw)
    )
    for batch in batches:
        names = [name for name in columns if name in batch.schema.names]
        for start in range(0, batch.num_rows, BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            yield part.select(names) if names else part


def _import(name: str) -> Any:
    """Imports a module of pyarrow.

    Raises:
        DataError: if the library is missing.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            "files of Parquet and Arrow need pyarrow: pip install 'isoflop[datasets]'"
        ) from error
