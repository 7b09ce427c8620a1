"""Files of arrays that are hashed while they are written, and the hash of a file."""

import functools
import hashlib
from pathlib import Path

import numpy as np


class HashingFile:
    """A file whose hash is computed while it is written."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def write(self, array: np.ndarray) -> None:
        """Appends the bytes of an array."""
        block = array.tobytes()
        self._file.write(block)
        self._sha256.update(block)
        self._bytes += len(block)

    def close(self) -> dict[str, int | str]:
        """Closes the file, and returns its size in bytes and its sha256."""
        self._file.close()
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}


@functools.lru_cache(maxsize=64)
def file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Returns the sha256 of a file, computed once per process while the file is unchanged."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
