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
    value = _read_json(path, hint, object_hook)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; {hint}")
    return value


def read_json_objects(path: Path, hint: str = "download it again") -> list[JsonObject]:
    """Reads a JSON file whose top level is a list of objects.

    Raises:
        CheckpointError: if the file cannot be read, is larger than 64 MiB, or is no such JSON.
    """
    value = _read_json(path, hint, None)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CheckpointError(f"{path} is not a list of JSON objects; {hint}")
    return value


def _read_json(path: Path, hint: str, object_hook: Callable[[JsonObject], object] | None) -> object:
    """Reads a JSON file, whose size is checked before.

    Raises:
        CheckpointError: if the file cannot be read, is larger than 64 MiB, or is no JSON.
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
        value: object = json.loads(path.read_bytes(), object_hook=object_hook)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; {hint}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); {hint}") from error
    return value
