"""The run folder holds everything that is needed to resume, reproduce and evaluate a run.

    run.json             settings, code, packages, devices, fingerprints, cost
    metrics.jsonl        rows {step, attempt, seconds, ...}; a later attempt supersedes earlier rows
    events.jsonl         start, resume, finish, preempt, failed, checkpoint_fallback, rollback, ...
    status.json          running, finished, preempted or failed; step; exit code
    LOCK                 the process that writes to the folder (training/run/lock.py)
    error.log            tracebacks
    checkpoints/         checkpoints by step (training/checkpoint/manager.py)
    eval/STEP/TASK.json  scores of a task

All files are JSON or text; nothing in the folder is executed and no link is followed. Reading needs
no lock. To write, call `open_run`, find the step to resume from, then call `record_start`.
"""

import contextlib
import faulthandler
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from errors import CheckpointError, IsoflopError, PreemptedError
from settings.json_types import JsonObject
from training.run.atomic_io import (
    JsonlWriter,
    disk_errors,
    from_json_number,
    read_json,
    read_jsonl,
    safe_join,
    to_json_value,
    validate_name,
    write_json,
)
from training.run.lock import RunLock
from training.run.provenance import redact, redact_text
from training.run.resume_check import (
    check_resumable,
    find_changes,
    format_changes,
    format_event,
    resume_flags,
)

EventCallback = Callable[
    [str, Mapping[str, object]], None
]  # called with (kind, details), like RunFolder.log_event
LOGGER = logging.getLogger("isoflop")
INFO_EVENTS = ("start", "resume", "finish", "settings_changed")  # all other events are warnings
ERROR_EVENTS = ("preempt", "failed")  # their message is that of the error, which the command prints
ENVIRONMENT_KEYS = ("environment", "packages", "python", "code")  # may change the results
RunStatus = Literal["running", "finished", "preempted", "failed"]


class RunFolder:
    """A run on disk; as a context manager it records how the run ends, and releases the lock."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.record: JsonObject = {}  # content of run.json from this attempt on
        self.previous_record: JsonObject | None = None  # content before this attempt
        self.attempt = 1
        self.is_main_process = True  # only process 0 writes
        self.step = 0  # last completed step, for status.json
        self.lock = RunLock(self.path / "LOCK")
        self._start_time = time.monotonic()
        self._has_begun = self._is_closed = False
        self._metrics_file: JsonlWriter | None = None
        self._events_file: JsonlWriter | None = None

    @property
    def is_resumed(self) -> bool:
        """Whether the folder has an earlier attempt at this run."""
        return self.previous_record is not None

    @property
    def finished_step(self) -> int | None:
        """The step at which the run finished; None if it has not finished."""
        status = self.read_status()
        return status.get("step") if status.get("state") == "finished" else None

    def file_path(self, *parts: str) -> Path:
        """Returns a path in this folder; a link or a path out of the folder is a DiskError."""
        return safe_join(self.path, *parts)

    def read_status(self) -> JsonObject:
        """Returns the content of status.json; {} if it is missing or damaged (it is rewritten)."""
        try:
            return read_json(self.file_path("status.json")) or {}
        except CheckpointError:
            return {}

    def last_attempt(self) -> int:
        """Returns the number of the newest attempt, 0 before the first."""
        attempts = [self.read_status().get("attempt")]
        if not isinstance(attempts[0], int):  # status.json is damaged; the events may be readable
            with contextlib.suppress(CheckpointError):
                attempts = [event.get("attempt") for event in self.read_events()]
        return max((n for n in attempts if isinstance(n, int)), default=0)

    def read_events(self) -> list[JsonObject]:
        """Returns the rows of events.jsonl."""
        return read_jsonl(self.file_path("events.jsonl"))

    def read_metrics(self) -> list[JsonObject]:
        """Returns the series in metrics.jsonl; see the function `read_metrics`."""
        return read_metrics(self.file_path("metrics.jsonl"))

    def record_start(self, step: int) -> None:
        """Records that the run starts or resumes at `step`.

        This writes run.json, logs an event for every change, and supersedes later metrics.
        """
        self.step, self._has_begun = step, self.is_main_process
        if not self.is_main_process:
            return
        self.write_status("running")
        write_json(self.file_path("run.json"), self.record)
        self.log_event("resume" if self.is_resumed else "start", {"step": step})
        if self.is_resumed:
            self._record_changes()
            self._write_metrics_row({"step": step, "resumed": True})

    def record_rollback(self, step: int, details: Mapping[str, object]) -> None:
        """Records that the run goes back to `step`, which supersedes later metrics."""
        self.step = step
        self.log_event("rollback", {"step": step, **details})
        self._write_metrics_row({"step": step, "resumed": True})

    def log_event(self, kind: str, details: Mapping[str, object]) -> None:
        """Appends to events.jsonl durably, and logs `details["message"]` or else the details."""
        details = redact(to_json_value(details))
        level = logging.INFO if kind in INFO_EVENTS else logging.WARNING
        level = logging.DEBUG if kind in ERROR_EVENTS else level
        LOGGER.log(level, "%s", details.get("message") or f"{kind} {format_event(details)}".strip())
        if self._is_closed or not self.is_main_process:
            return
        self._events_file = self._events_file or JsonlWriter(self.file_path("events.jsonl"))
        self._events_file.append(
            {"event": validate_name(kind, "an event"), **self._timestamp(), **details}
        )
        self._events_file.sync()

    def write_metrics(self, step: int, values: Mapping[str, object]) -> None:
        """Appends a row to metrics.jsonl; `sync` makes the rows durable.

        A LockedError is raised if another process has taken the folder over.
        """
        self.step = max(self.step, step)
        self._write_metrics_row({"step": step, **values})

    def sync(self) -> None:
        """Waits until all rows of metrics are on the disk."""
        if self._metrics_file:
            self._metrics_file.sync()

    def write_status(self, state: RunStatus, code: int = 0, message: str = "") -> None:
        """Writes status.json; `code` is the exit code, `message` the reason of a failure."""
        status = {"state": state, "step": self.step, "code": code, **self._timestamp()}
        if not self.is_main_process:
            return
        write_json(self.file_path("status.json"), {**status, "message": redact_text(message)})

    def record_finish(self, step: int) -> None:
        """Records that the run finished at `step`."""
        self.step = step
        self.log_event("finish", {"step": step})
        self.write_status("finished")

    def write_eval(self, step: int, task: str, result: Mapping[str, object]) -> Path:
        """Writes eval/STEP/TASK.json, replaces an earlier one, and returns its path."""
        path = self.file_path("eval", str(int(step)), f"{validate_name(task, 'a task')}.json")
        if self.is_main_process:
            write_json(path, result)
        return path

    def read_eval(self, step: int, task: str) -> JsonObject | None:
        """Returns the content of eval/STEP/TASK.json, None if it does not exist."""
        return read_json(
            self.file_path("eval", str(int(step)), f"{validate_name(task, 'a task')}.json")
        )

    def write_error(self, error: BaseException) -> None:
        """Appends the traceback of `error` to error.log."""
        text = "".join(traceback.format_exception(error))
        path = self.file_path("error.log")
        with disk_errors(path), os.fdopen(os.open(path, _APPEND_FLAGS, 0o644), "a") as file:
            file.write(f"--- attempt {self.attempt}, step {self.step}\n{redact_text(text)}")

    def record_abort(self, error: BaseException) -> None:
        """Records the end of a run that another thread than the main thread is about to end.

        The stacks of all threads go to error.log.
        """
        if self.is_main_process:
            path = self.file_path("error.log")
            with os.fdopen(os.open(path, _APPEND_FLAGS, 0o644), "a") as file:
                file.write(f"--- attempt {self.attempt}, step {self.step}: {error}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            self._record_end(error)
            self.close()

    def close(self) -> None:
        """Closes the files and releases the lock; later events are only logged."""
        for rows in (self._metrics_file, self._events_file):
            if rows:
                rows.close()
        self._metrics_file = self._events_file = None
        self._is_closed = True
        self.lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and self._has_begun and not self.lock.is_lost:
                with contextlib.suppress(IsoflopError):  # must not hide the error that ends the run
                    self._record_end(error)
        finally:
            self.close()

    def _record_end(self, error: BaseException) -> None:
        state: RunStatus = "preempted" if isinstance(error, PreemptedError) else "failed"
        code = error.code if isinstance(error, IsoflopError) else 1
        if isinstance(error, KeyboardInterrupt):
            code = 130
        if state == "failed":
            self.write_error(error)
        kind = "preempt" if state == "preempted" else "failed"
        message = f"{type(error).__name__}: {error}"
        self.log_event(kind, {"step": self.step, "code": code, "message": message})
        self.write_status(state, code, message)

    def _write_metrics_row(self, row: Mapping[str, object]) -> None:
        if not self.is_main_process:
            return
        self.lock.check()
        self._metrics_file = self._metrics_file or JsonlWriter(self.file_path("metrics.jsonl"))
        seconds = round(time.monotonic() - self._start_time, 3)
        head = {"step": row["step"], "attempt": self.attempt, "seconds": seconds}
        self._metrics_file.append(head | dict(row))

    def _timestamp(self) -> JsonObject:
        return {"time": round(time.time(), 3), "attempt": self.attempt}

    def _record_changes(self) -> None:
        old, new = self.previous_record or {}, self.record
        for key in ("mesh", "devices"):
            if changes := find_changes(old, new, key):
                message = f"{key} changed: {format_changes(changes)}"
                self.log_event("devices_changed", {"message": message, "changes": changes})
        for key in ENVIRONMENT_KEYS:
            if changes := find_changes(old, new, key):
                message = f"{key} changed since the last attempt: {format_changes(changes)}"
                self.log_event("environment_changed", {"message": message, "changes": changes})
        if changes := find_changes(old, new, "settings"):
            self.log_event(
                "settings_changed",
                {"message": f"settings changed: {format_changes(changes)}", "changes": changes},
            )
        if changes := find_changes(old, new, "fingerprints"):
            message = f"data or tokenizer changed: {format_changes(changes)}"
            self.log_event("data_changed", {"message": message, "changes": changes})


_APPEND_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW


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
    folder = RunFolder(path)
    with disk_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    folder.lock.acquire()
    try:
        folder.record = redact(to_json_value(record))
        folder.previous_record = read_json(folder.file_path("run.json"))
        if folder.previous_record is not None:
            check_resumable(
                folder.path, folder.previous_record, folder.record, resumable, allow_changed
            )
            folder.record |= {key: folder.previous_record[key] for key in ("run_id", "created")}
            folder.record["flags"] = resume_flags(
                folder.path, folder.previous_record, folder.record
            )
        folder.attempt = 1 + folder.last_attempt()
        if folder.lock.previous_owner:
            message = f"took over the lock, which was {folder.lock.previous_owner}"
            folder.log_event("lock_taken_over", {"message": message})
    except BaseException:
        folder.close()
        raise
    return folder


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


def read_metrics(path: Path) -> list[JsonObject]:
    """Returns the series in a metrics.jsonl: one row per step, in increasing order of steps.

    Rows with the same step and attempt are merged. A row at an earlier step than the row before
    it, or a row with `resumed`, removes all rows of later steps.

    Raises:
        CheckpointError: if a row has no step.
    """
    series: list[JsonObject] = []
    for row in read_jsonl(path):
        step = row.get("step")
        if not isinstance(step, int):
            raise CheckpointError(f"{path} has a row without a step: {format_event(row)}")
        while series and series[-1]["step"] > step:
            series.pop()
        if row.get("resumed"):
            continue
        row = {key: from_json_number(value) for key, value in row.items()}
        is_same_step = bool(series) and series[-1]["step"] == step
        if is_same_step and series[-1].get("attempt") == row.get("attempt"):
            series[-1] |= row
        elif is_same_step:
            series[-1] = row
        else:
            series.append(row)
    return series
