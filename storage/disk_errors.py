"""Errors of the disk as errors of the project, which say what to do."""

import contextlib
from collections.abc import Generator
from pathlib import Path

from errors import DiskError


@contextlib.contextmanager
def disk_errors(
    path: Path, way_out: str = "free space, check permissions or use another folder"
) -> Generator[None, None, None]:
    """Turns an OSError of the body into a DiskError.

    Args:
        path: what the body reads or writes, for errors that name no file.
        way_out: what the user can do.

    Raises:
        DiskError: if the body raises an OSError.
    """
    try:
        yield
    except OSError as error:
        message = f"{error.filename or path}: {error.strerror or error}; {way_out}"
        raise DiskError(message) from error
