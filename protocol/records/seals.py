"""Checks that the files of a run are as the run wrote them, by the hashes that it wrote."""

import hashlib
from collections.abc import Mapping, Sequence

from errors import DataError
from protocol.records.safe_read import CheckedFields, parse_object, sanitize
from settings.run_json import is_intact, is_run_sealed

LOG_FILES = ("metrics.jsonl", "events.jsonl")
WAY_OUT = "restore it from a copy of the run, or run the command of the run again, which repairs it"


def check_seals(
    run: CheckedFields,
    status: CheckedFields,
    results: Sequence[CheckedFields],
    files: Mapping[str, bytes],
) -> None:
    """Checks the files of a run that has hashes; a run of an older version has none.

    Args:
        run: run.json.
        status: status.json, which seals the logs.
        results: the results of the tasks at the last step.
        files: the content of the files that were read, by path.

    Raises:
        DataError: if a file has other content than was written.
    """
    if not is_run_sealed(run.tree):
        return
    sealed = [run, status, *results]
    if manifest := next((data for n, data in files.items() if n.endswith("MANIFEST.json")), None):
        sealed.append(parse_object(manifest, "MANIFEST.json"))
    for fields in sealed:
        if not is_intact(fields.tree, is_sealed=True):
            raise DataError(
                f"{sanitize(fields.name)} is not as it was written: it does not have its sha256; "
                f"{WAY_OUT}"
            )
    is_running = status.text("state") == "running"
    for name in LOG_FILES:
        seal, data = status.section("files").section(name), files.get(name, b"")
        size = seal.count("size")
        # Events may follow the end of a run; a run that was killed has rows after its last seal.
        may_grow = is_running or name == "events.jsonl"
        if size is None or len(data) < size or (len(data) > size and not may_grow):
            raise DataError(f"{name} has {len(data)} bytes, {size} were written; {WAY_OUT}")
        if hashlib.sha256(data[:size]).hexdigest() != seal.text("sha256"):
            raise DataError(f"{name} has other content than was written; {WAY_OUT}")
