"""Opens the run folder of a run to write to it: it is locked, and checked for another run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from errors import DiskError
from settings.json_types import JsonObject
from storage import scratch
from storage.disk_errors import disk_errors
from training.run import seal
from training.run.atomic_io import read_json
from training.run.folder import RunFolder
from training.run.mirror import RunMirror
from training.run.provenance import redact
from training.run.resume_check import check_resumable, resume_flags
from training.run.run_paths import validate_run_path
from training.run.strict_json import to_json_value


def open_run(
    path: str | os.PathLike,
    record: Mapping[str, object],
    *,
    resumable: Sequence[str] = (),
    allow_changed: bool = False,
) -> RunFolder:
    """Locks the run folder at `path` for the run that `record` (see `make_run_record`) describes.

    A new folder gets the record. In an existing folder the run resumes under its old run_id if all
    settings agree, except keys that match `resumable` ("log.*"), and if data and tokenizer are the
    same (or `allow_changed` is set). Nothing is written until `record_start(step)` is called; the
    caller first checks `finished_step` and finds the step.

    A LockedError is raised if another live process owns the folder, and an error of
    `check_resumable` if the folder holds another run.
    """
    folder = RunFolder(validate_run_path(Path(path)))
    if url := scratch.url_of(folder.path):
        folder.mirror = RunMirror(folder.path, url)
        folder.mirror.open()
    try:
        with disk_errors(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        folder.lock.acquire()
        folder.record = redact(to_json_value(record))
        _compare_records(folder, resumable, allow_changed)
        if folder.previous_record is not None:
            if problem := seal.find_status_damage(folder.path, folder.previous_record):
                message = f"{problem}; it is written anew"
                folder.log_event("file_damaged", {"file": "status.json", "message": message})
            if isinstance(step := folder.read_status().get("step"), int):
                folder.step = step
        folder.attempt = 1 + folder.last_attempt()
        owners = [folder.lock.previous_owner]
        owners += [folder.mirror.lock.previous_owner] if folder.mirror else []
        if owner := "; ".join(filter(None, owners)):
            message = f"took over the lock, which was {owner}"
            folder.log_event("lock_taken_over", {"message": message})
    except BaseException:
        folder.close()
        raise
    return folder


def check_folder(
    path: Path, record: Mapping[str, object], resumable: Sequence[str], allow_changed: bool
) -> RunFolder:
    """Checks that `open_run` could open the folder, as far as that is known without writing.

    Raises:
        DiskError: if the folder cannot be created or written to.
    """
    folder = RunFolder(validate_run_path(path))
    check_creatable(folder.path)
    folder.record = redact(to_json_value(record))
    _compare_records(folder, resumable, allow_changed)
    return folder


def check_creatable(folder: Path) -> None:
    """Checks, and creates nothing, that `folder` and files in it can be created.

    Raises:
        DiskError: if a part of its path is a file, or this process may not write there.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise DiskError(f"{existing}: it is no folder; use another --workdir")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise DiskError(f"{existing}: it is not writable; check permissions or use another folder")


def _compare_records(folder: RunFolder, resumable: Sequence[str], allow_changed: bool) -> None:
    """Reads the record of an existing run, which the new record continues if they agree."""
    folder.previous_record = read_json(folder.file_path("run.json"))
    if folder.previous_record is None:
        return
    check_resumable(folder.path, folder.previous_record, folder.record, resumable, allow_changed)
    folder.record |= {key: folder.previous_record[key] for key in ("run_id", "created")}
    folder.record["flags"] = resume_flags(folder.path, folder.previous_record, folder.record)


def open_as_worker(
    path: str | os.PathLike, record: Mapping[str, object], main_record: JsonObject
) -> RunFolder:
    """Returns the run folder for a process other than 0, which writes nothing.

    `main_record` holds the values that process 0 found: run_id, created, flags and attempt.
    """
    folder = RunFolder(path)
    folder.is_main_process = False
    shared = {key: value for key, value in main_record.items() if key != "attempt"}
    folder.record = redact(to_json_value(record)) | shared
    folder.attempt = main_record["attempt"]
    return folder
