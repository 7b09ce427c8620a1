"""Results of the filters on disk, so that an interrupted preparation continues.

The filters take most of the time. Their results are written in parts, at intervals, beside the
unfinished output. The same command reads the documents again, takes the results of the finished
parts, and decides and writes as before; the output has the same bytes as without the interruption.
"""

import json
import os
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from data.prepare.document_filter import (
    DocumentBlock,
    FilteredBlock,
    FilterResult,
)
from data.prepare.duplicates import NUM_PERMUTATIONS
from errors import DataError
from settings.json_types import JsonObject

IDENTITY_FILE = "identity.json"
PART_SECONDS = 30.0  # Seconds between two parts, which an interruption loses at most.
DIGEST_BYTES = 16

StoredResult = tuple[int, FilterResult]  # The location of a document, and its result.


class BlockFilter(Protocol):
    """A function that yields each block with the results of its documents, in order."""

    def __call__(self, blocks: Iterator[DocumentBlock], /) -> Iterator[FilteredBlock]:
        """Filters blocks."""
        ...


class FilterJournal:
    """The finished parts in a folder; those of other inputs or settings are deleted."""

    def __init__(self, folder: Path, identity: JsonObject) -> None:
        self.folder = folder
        self.pending: list[StoredResult] = []
        self.last_write = time.monotonic()
        text = json.dumps(identity, sort_keys=True)
        path = folder / IDENTITY_FILE
        is_same = path.is_file() and path.read_bytes() == text.encode()
        self.n_parts = len(self.list_parts())
        if self.n_parts and not is_same:
            print(
                f"{folder}: the interrupted preparation had other inputs, settings or versions; "
                "it begins again",
                file=sys.stderr,
            )
        for file in folder.iterdir():
            if not (is_same and (file == path or file in self.list_parts())):
                file.unlink()
        if not is_same:
            self.n_parts = 0
            path.write_text(text, "utf-8")

    def list_parts(self) -> list[Path]:
        """Returns the files of the finished parts, in order, up to the first that is missing."""
        parts: list[Path] = []
        while (path := _part_path(self.folder, len(parts))).is_file():
            parts.append(path)
        return parts

    def filter(self, blocks: Iterable[DocumentBlock], run: BlockFilter) -> Iterator[FilteredBlock]:
        """Yields each block with its results, from the finished parts, then from `run`."""
        blocks = iter(blocks)
        if self.n_parts:
            yield from self._replay(blocks)
        # The rest of the blocks, after those that a part had.
        for block, results in run(blocks):
            stored = zip((document.location for document in block), results, strict=True)
            self.pending += stored
            if time.monotonic() - self.last_write >= PART_SECONDS:
                self._write_part()
            yield block, results

    def delete(self) -> None:
        """Deletes the parts, when the output is complete."""
        for path in [*self.list_parts(), self.folder / IDENTITY_FILE]:
            path.unlink()

    def _replay(self, blocks: Iterator[DocumentBlock]) -> Iterator[FilteredBlock]:
        """Yields the blocks of the finished parts.

        Raises:
            DataError: if the documents are not those of the parts.
        """
        count = 0
        for number in range(self.n_parts):
            results = read_part(_part_path(self.folder, number))
            if results is None:  # A damaged part and those after it are written again.
                for path in self.list_parts()[number:]:
                    path.unlink()
                self.n_parts = number
                break
            while results:
                block = next(blocks, [])
                stored, results = results[: len(block)], results[len(block) :]
                locations = [document.location for document in block]
                if not block or locations != [location for location, _ in stored]:
                    raise DataError(
                        f"{self.folder} has results of other documents; delete it and run again"
                    )
                count += len(block)
                yield block, [result for _, result in stored]
        print(f"{count:,} documents were filtered before the interruption", file=sys.stderr)

    def _write_part(self) -> None:
        path = _part_path(self.folder, self.n_parts)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **_to_arrays(self.pending))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        self.n_parts += 1
        self.pending = []
        self.last_write = time.monotonic()


def has_parts(folder: Path) -> bool:
    """Returns whether a folder has a finished part."""
    return _part_path(folder, 0).is_file()


def read_part(path: Path) -> list[StoredResult] | None:
    """Returns the results in a part, or None if it is damaged. Its archive has checksums."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            dropped = json.loads(arrays["dropped"].tobytes())
            locations, digests = arrays["locations"].tolist(), arrays["digests"]
            is_signed, signatures = arrays["is_signed"], arrays["signatures"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    results = [FilterResult(digest=digest.tobytes()) for digest in digests]
    for i, signature in zip(np.flatnonzero(is_signed).tolist(), signatures, strict=True):
        results[i] = FilterResult(digest=results[i].digest, signature=signature)
    for i, stage, reason in dropped:
        results[i] = FilterResult(stage, reason)
    return list(zip(locations, results, strict=True))


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"filtered-{number:06}.npz"


def _to_arrays(stored: list[StoredResult]) -> dict[str, np.ndarray]:
    results = [result for _, result in stored]
    dropped = [(i, r.stage, r.reason) for i, r in enumerate(results) if r.stage]
    signatures = [r.signature for r in results if r.signature is not None]
    digests = b"".join(r.digest.ljust(DIGEST_BYTES, b"\0") for r in results)
    return {
        "locations": np.array([location for location, _ in stored], np.int64),
        "digests": np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES),
        "is_signed": np.array([r.signature is not None for r in results]),
        "signatures": np.array(signatures, np.uint32).reshape(-1, NUM_PERMUTATIONS),
        "dropped": np.frombuffer(json.dumps(dropped).encode(), np.uint8),
    }
