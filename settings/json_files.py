"""Reads JSON files that others wrote: size, type and nesting are checked before a value is used."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

from errors import CheckpointError
from settings.json_types import JsonObject

MAX_JSON_BYTES = 64 << 20  # A larger config or index is damaged or hostile.


def read_json_object(
    path: Path,
    hint: str = "download it again",
    object_hook: Callable[[JsonObject], object] | None = None,
) -> JsonObject:
    """Reads a JSON file whose top level is an object.

    Args:
        path: the file.
        hint: the way out that messages name.
        object_hook: converts objects, as in `json.loads`.

    Raises:
        CheckpointError: if the file cannot be read, is larger than 64 MiB, or is no such JSON.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is no regular file; {hint}")
        if status.st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path} has {status.st_size} bytes, more than the {MAX_JSON_BYTES} of any such "
                f"file; {hint}"
            )
        value = json.loads(path.read_bytes(), object_hook=object_hook)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; {hint}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); {hint}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; {hint}")
    return value
