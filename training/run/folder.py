"""The run folder holds everything that is needed to resume, reproduce and evaluate a run.

    run.json             settings, code, packages, devices, fingerprints, cost
    metrics.jsonl        rows {step, attempt, seconds, ...}; a later attempt supersedes earlier rows
    events.jsonl         start, resume, finish, preempt, failed, checkpoint_fallback, rollback, ...
    status.json          running, finished, preempted, interrupted or failed; step; exit code
    LOCK                 the process that writes to the folder (training/run/lock.py)
    error.log            tracebacks
    checkpoints/         checkpoints by step (training/checkpoint/manager.py)
    eval/STEP/TASK.json  scores of a task

All files are JSON or text; nothing in the folder is executed and no link is followed. A run in an
object store is written in a scratch folder and mirrored (training/run/mirror.py). Reading needs no
lock. To write, call `open_run`
(training/run/open_folder.py), find the step to resume from, then call `record_start`.
"""

import contextlib
import faulthandler
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, TextIO

from errors import CheckpointError, DiskError, IsoflopError, PreemptedError
from settings.json_types import JsonObject
from settings.run_json import HASH_KEY, SEALED_KEY, is_intact, is_run_sealed
from storage import scratch
from storage.disk_errors import disk_errors
from training.run import seal
from training.run.atomic_io import FileSeal, JsonlWriter, read_json, read_jsonl, write_json
from training.run.lock import RunLock
from training.run.metrics_file import read_metrics
from training.run.mirror import RunMirror
from training.run.provenance import redact, redact_text
from training.run.resume_check import change_events, format_event
from training.run.run_paths import check_writable, safe_join, validate_name
from training.run.strict_json import to_json_value

EventCallback = Callable[
    [str, Mapping[str, object]], None
]  # called with (kind, details), like RunFolder.log_event
LOGGER = logging.getLogger("isoflop")
INFO_EVENTS = ("start", "resume", "finish", "settings_changed")  # all other events are warnings
ERROR_EVENTS = (
    "preempt",
    "interrupt",
    "failed",
)  # their message is that of the error, which the command prints
RunStatus = Literal["running", "finished", "preempted", "interrupted", "failed"]


class RunFolder:
    """A run on disk; as a context manager it records how the run ends, and releases the lock."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.record: JsonObject = {}  # content of run.json from this attempt on
        self.previous_record: JsonObject | None = None  # content before this attempt
        self.attempt = 1
        self.is_main_process = True  # only process 0 writes
        self.step = 0  # last completed step, for status.json
        self.start_step = 0  # step at which this attempt started or resumed
        self.lock = RunLock(self.path / "LOCK")
        self.mirror: RunMirror | None = None  # of a run in an object store
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

    def find_damage(self) -> list[str]:
        """Returns what differs from what this finished run wrote, besides its checkpoints."""
        return seal.find_run_damage(self.path, self.previous_record or {})

    def metrics_seal(self) -> FileSeal:
        """Makes the metrics so far durable and returns their seal, for a checkpoint's manifest."""
        self.sync()
        return self._log_seal(seal.METRICS_FILE, self._metrics_file)

    def file_path(self, *parts: str) -> Path:
        """Returns a path in this folder; a link or a path out of the folder is a DiskError."""
        return safe_join(self.path, *parts)

    def read_status(self) -> JsonObject:
        """Returns the content of status.json; {} if it is missing or damaged (it is rewritten)."""
        try:
            status = read_json(self.file_path("status.json")) or {}
        except CheckpointError:
            return {}
        return status if is_intact(status, is_sealed=False) else {}

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

    def record_start(self, step: int, metrics_seal: object = None) -> None:
        """Records that the run starts or resumes at `step`.

        This writes run.json, logs an event for every change, and supersedes later metrics.
        `metrics_seal` is what the checkpoint at `step` sealed of metrics.jsonl. A log that is
        damaged is an event; its rows that can be read stay.
        """
        self.step = self.start_step = step
        self._has_begun = self.is_main_process
        if not self.is_main_process:
            return
        problems = []
        if self.is_resumed:
            seals = {**(self.read_status().get("files") or {}), seal.METRICS_FILE: metrics_seal}
            problems = seal.find_log_damage(self.path, seals)
        for path, _ in problems:
            seal.salvage_rows(path, self.attempt)
        self.write_status("running")
        write_json(self.file_path("run.json"), seal.with_hash({SEALED_KEY: True, **self.record}))
        self.log_event("resume" if self.is_resumed else "start", {"step": step})
        for path, problem in problems:
            message = (
                f"{problem}; the rows that can be read stay, the damaged file is "
                f"{seal.damaged_path(path, self.attempt).name}"
            )
            self.log_event("file_damaged", {"step": step, "file": path.name, "message": message})
        if self.is_resumed:
            for kind, details in change_events(self.previous_record or {}, self.record):
                self.log_event(kind, details)
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
        if not self.is_main_process:
            return
        status = {"state": state, "step": self.step, "code": code, **self._timestamp()}
        status |= {"message": redact_text(message), "files": self._log_seals()}
        write_json(self.file_path("status.json"), seal.with_hash(status))

    def record_finish(self, step: int) -> None:
        """Records that the run finished at `step`."""
        self.step = step
        self.log_event("finish", {"step": step})
        self.write_status("finished")

    def check_eval_writable(self, step: int) -> None:
        """Checks that results can be written at `step`; a DiskError is raised if they cannot."""
        if self.is_main_process:
            check_writable(self.file_path("eval", str(int(step))))

    def check_owner(self) -> None:
        """Checks that this process still owns the folder; a LockedError is raised if not."""
        self.lock.check()
        if self.mirror:
            self.mirror.lock.check()

    def publish_checkpoint(self) -> None:
        """Uploads a new checkpoint in the background, if the run is in an object store."""
        if self.mirror:
            self.mirror.request_upload()

    def write_eval(self, step: int, task: str, result: Mapping[str, object]) -> Path:
        """Writes eval/STEP/TASK.json, replaces an earlier one, and returns its path."""
        path = self.file_path("eval", str(int(step)), f"{validate_name(task, 'a task')}.json")
        if self.is_main_process:
            write_json(path, seal.with_hash(result))
            if self.mirror is None:  # a copy of a run that `eval` reads
                scratch.upload_file(path)
        return path

    def read_eval(self, step: int, task: str) -> JsonObject | None:
        """Returns the content of eval/STEP/TASK.json, None if there is none, or a damaged one."""
        path = self.file_path("eval", str(int(step)), f"{validate_name(task, 'a task')}.json")
        try:
            result = read_json(path)
        except CheckpointError as error:
            LOGGER.warning("%s; the task is evaluated again", error)
            return None
        if result is not None and not is_intact(result, is_sealed=self._is_sealed()):
            LOGGER.warning("%s has other content than was written; it is evaluated again", path)
            return None
        return {k: v for k, v in result.items() if k != HASH_KEY} if result else result

    def write_error(self, error: BaseException) -> None:
        """Appends the traceback of `error` to error.log."""
        text = "".join(traceback.format_exception(error))
        path = self.file_path("error.log")
        with disk_errors(path), self._open_error_log(path) as file:
            file.write(f"--- attempt {self.attempt}, step {self.step}\n{redact_text(text)}")

    def record_abort(self, error: BaseException) -> None:
        """Records the end of a run that another thread than the main thread is about to end.

        The stacks of all threads go to error.log.
        """
        if self.is_main_process:
            path = self.file_path("error.log")
            with self._open_error_log(path) as file:
                file.write(f"--- attempt {self.attempt}, step {self.step}: {error}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            self._record_end(error)
            self.close(upload_timeout=ABORT_UPLOAD_SECONDS)

    def close(self, upload_timeout: float | None = None) -> None:
        """Closes the files and releases the lock; later events are only logged.

        A run in an object store is uploaded, for at most `upload_timeout` seconds.
        """
        for rows in (self._metrics_file, self._events_file):
            if rows:
                rows.close()
        self._metrics_file = self._events_file = None
        self._is_closed = True
        self.lock.release()
        if self.mirror:
            self.mirror.close(upload_timeout)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # An interrupt before the first step is recorded too; other errors leave no trace then.
            is_recorded = self._has_begun or (
                isinstance(error, (KeyboardInterrupt, PreemptedError))
                and self.is_main_process
                and self.finished_step is None
            )
            if error is not None and is_recorded and not self._is_owner_lost():
                with contextlib.suppress(IsoflopError):  # must not hide the error that ends the run
                    self._record_end(error)
        finally:
            self.close()
        if error is None and self.mirror and self.mirror.failure:
            raise DiskError(
                f"{self.mirror.failure}; the run is complete in {self.path}: run the same command "
                "again on this machine to upload it"
            )

    def _is_owner_lost(self) -> bool:
        return self.lock.is_lost or bool(self.mirror and self.mirror.lock.is_lost)

    def _record_end(self, error: BaseException) -> None:
        code, kind = error.code if isinstance(error, IsoflopError) else 1, "failed"
        state: RunStatus = "failed"
        if isinstance(error, PreemptedError):
            state, kind = "preempted", "preempt"
        elif isinstance(error, KeyboardInterrupt):
            state, kind, code = "interrupted", "interrupt", 130
        else:
            self.write_error(error)
        message = f"{type(error).__name__}: {error}"
        self.log_event(kind, {"step": self.step, "code": code, "message": message})
        self.write_status(state, code, message)

    def _open_error_log(self, path: Path) -> TextIO:
        file = os.open(path, _APPEND_FLAGS, 0o644)
        # A locale without UTF-8, or a path that is none, must not hide the error.
        return os.fdopen(file, "a", encoding="utf-8", errors="backslashreplace")

    def _write_metrics_row(self, row: Mapping[str, object]) -> None:
        if not self.is_main_process:
            return
        self.check_owner()
        self._metrics_file = self._metrics_file or JsonlWriter(self.file_path("metrics.jsonl"))
        seconds = round(time.monotonic() - self._start_time, 3)
        head = {"step": row["step"], "attempt": self.attempt, "seconds": seconds}
        self._metrics_file.append(head | dict(row))

    def _is_sealed(self) -> bool:
        """Whether a result without a hash is damaged, because this run's results have hashes."""
        return self._has_begun or is_run_sealed(read_json(self.file_path("run.json")) or {})

    def _log_seals(self) -> dict[str, FileSeal]:
        return {
            seal.METRICS_FILE: self.metrics_seal(),
            seal.EVENTS_FILE: self._log_seal(seal.EVENTS_FILE, self._events_file),
        }

    def _log_seal(self, name: str, writer: JsonlWriter | None) -> FileSeal:
        return writer.seal() if writer else seal.seal_file(self.file_path(name))

    def _timestamp(self) -> JsonObject:
        return {"time": round(time.time(), 3), "attempt": self.attempt}


ABORT_UPLOAD_SECONDS = 30.0  # that a process which is about to be ended waits for uploads
_APPEND_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
