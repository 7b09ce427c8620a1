"""What every reader of a run.json checks first: its format, and the hash of its content.

A JSON file is sealed by the key `sha256`, the hash of all other keys as JSON. The files of a run
are sealed if its run.json says so (`sealed`), so that a seal that is missing is damage as well.
"""

import hashlib
import json
from collections.abc import Mapping

from settings.json_types import JsonObject

RUN_FORMAT = 2  # format number in run.json
HASH_KEY = "sha256"
SEALED_KEY = "sealed"
SECTIONS = (  # Keys whose values are objects.
    *("flags", "settings", "fingerprints", "data", "cost", "code", "packages", "devices"),
    *("mesh", "environment"),
)
RECORD_KEYS = ("format", HASH_KEY, SEALED_KEY)  # keys that a file of settings alone has not


def content_hash(content: Mapping[str, object]) -> str:
    """Returns the sha256 of JSON values, as the manifest of a checkpoint and sealed files have it.

    Raises:
        RecursionError: if the values are nested too deep.
    """
    return hashlib.sha256(json.dumps(content, allow_nan=False).encode()).hexdigest()


def add_hash(content: Mapping[str, object]) -> JsonObject:
    """Returns JSON values with the hash of all other keys under `sha256`."""
    body = {key: value for key, value in content.items() if key != HASH_KEY}
    return body | {HASH_KEY: content_hash(body)}


def is_intact(record: Mapping[str, object], *, is_sealed: bool) -> bool:
    """Returns whether the content has its hash; one without a hash counts unless `is_sealed`."""
    if HASH_KEY not in record:
        return not is_sealed
    body = {key: value for key, value in record.items() if key != HASH_KEY}
    try:
        return record[HASH_KEY] == content_hash(body)
    except RecursionError:
        return False


def is_run_sealed(record: Mapping[str, object]) -> bool:
    """Returns whether the files of the run with this run.json have hashes."""
    return SEALED_KEY in record or HASH_KEY in record


def find_problem(record: Mapping[str, object]) -> str:
    """Returns why a run.json cannot be used, with a way out; "" if it can."""
    version = record.get("format")
    if version != RUN_FORMAT:
        is_older = isinstance(version, int) and version < RUN_FORMAT
        renames = "; docs/renames.json lists the new names of settings and keys" if is_older else ""
        return (
            f"has format {version}, this version reads format {RUN_FORMAT}{renames}; use the "
            "version that wrote it, or another run folder"
        )
    if not is_intact(record, is_sealed=is_run_sealed(record)):
        return (
            f"is not as it was written: it does not have its {HASH_KEY}; restore it from a copy, "
            f"or remove its keys {SEALED_KEY!r} and {HASH_KEY!r} if you edited it yourself"
        )
    for name in SECTIONS:
        if not isinstance(record.get(name, {}), Mapping):
            return f"has no section under {name!r}, must be an object; restore it from a copy"
    return ""
