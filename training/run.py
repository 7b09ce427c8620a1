"""The run folder: all that is needed to go on with a run, to reproduce it and to judge it.

    run.json         settings, code, packages, devices, fingerprints, cost
    metrics.jsonl    rows {step, attempt, seconds, ...}; a later attempt replaces what it repeats
    events.jsonl     start, resume, elastic, fallback, skip, preempt, nonfinite, tainted ...
    status.json      running, finished, preempted or failed; step; exit code
    LOCK             who writes here (training/lock.py)
    error.log        tracebacks
    checkpoints/     by step (training/checkpoint.py)
    eval/STEP/TASK.json

JSON only; nothing found here is executed, no link is followed. Reading needs no lock; to write,
`open_run`, then `begin` once it is known from which step the run goes on.
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
from typing import Any, Literal

from errors import CheckpointError, IsoflopError, Preempted
from training.environment import redacted, without_credentials
from training.files import Rows, disk, inside, number, plain, read_json, read_rows, slug, write_json
from training.lock import Lock
from training.sameness import began, brief, check_same, differing, listed

Report = Callable[[str, Mapping[str, Any]], None]  # (kind, details), as RunFolder.event
LOGGER = logging.getLogger("isoflop")
CALM = ("start", "resume", "finish", "settings", "checkpoint")  # events that warn of nothing
SURROUNDINGS = ("environment", "packages", "python", "code")  # a change may change the numbers
State = Literal["running", "finished", "preempted", "failed"]


class RunFolder:
    """A run on disk. As a context manager it records how the run ended, and gives the lock back."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.record: dict[str, Any] = {}  # what run.json holds or will hold
        self.old: dict[str, Any] | None = None  # what it held before this attempt
        self.attempt = 1
        self.leads = True  # only process 0 writes
        self.step = 0  # the last one done, for status.json
        self.lock = Lock(self.path / "LOCK")
        self._started = time.monotonic()
        self._begun = self._closed = False
        self._metrics: Rows | None = None
        self._events: Rows | None = None

    @property
    def resumes(self) -> bool:
        """Whether an earlier attempt was here."""
        return self.old is not None

    @property
    def finished_at(self) -> int | None:
        """The step at which the run finished; None: it has not, or goes on."""
        status = self.status()
        return status.get("step") if status.get("state") == "finished" else None

    def file(self, *parts: str) -> Path:
        """A path in this folder; links and ways out are refused."""
        return inside(self.path, *parts)

    def status(self) -> dict[str, Any]:
        """What status.json says; a damaged one says nothing: the run goes on and writes another."""
        try:
            return read_json(self.file("status.json")) or {}
        except CheckpointError:
            return {}

    def last_attempt(self) -> int:
        """The number of the newest attempt, 0 before the first."""
        found = [self.status().get("attempt")]
        if not isinstance(found[0], int):  # its file is damaged; perhaps the events tell
            with contextlib.suppress(CheckpointError):
                found = [event.get("attempt") for event in self.events()]
        return max((n for n in found if isinstance(n, int)), default=0)

    def events(self) -> list[dict[str, Any]]:
        return read_rows(self.file("events.jsonl"))

    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.file("metrics.jsonl"))

    def begin(self, step: int) -> None:
        """Go on from `step`: update run.json, tell what changed, supersede metrics beyond it."""
        self.step, self._begun = step, self.leads
        if not self.leads:
            return
        self.write_status("running")
        write_json(self.file("run.json"), self.record)
        self.event("resume" if self.resumes else "start", {"step": step})
        if self.resumes:
            self._tell_changes()
            self._row({"step": step, "resumed": True})

    def back(self, step: int, details: Mapping[str, Any]) -> None:
        """Go back to `step`, which supersedes metrics beyond it."""
        self.step = step
        self.event("rollback", {"step": step, **details})
        self._row({"step": step, "resumed": True})

    def event(self, kind: str, details: Mapping[str, Any]) -> None:
        """Append to events.jsonl, durably, and tell the log; `details["message"]` is for people."""
        details = redacted(plain(details))
        level = logging.INFO if kind in CALM else logging.WARNING
        LOGGER.log(level, "%s", details.get("message") or f"{kind} {brief(details)}".strip())
        if self._closed or not self.leads:
            return
        self._events = self._events or Rows(self.file("events.jsonl"))
        self._events.append({"event": slug(kind, "an event"), **self._stamp(), **details})
        self._events.sync()

    def write_metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl; `sync` makes rows durable. LockedError: it is not ours."""
        self.step = max(self.step, step)
        self._row({"step": step, **values})

    def sync(self) -> None:
        if self._metrics:
            self._metrics.sync()

    def write_status(self, state: State, code: int = 0, message: str = "") -> None:
        status = {"state": state, "step": self.step, "code": code, **self._stamp()}
        if not self.leads:
            return
        write_json(self.file("status.json"), {**status, "message": without_credentials(message)})

    def finish(self, step: int) -> None:
        self.step = step
        self.event("finish", {"step": step})
        self.write_status("finished")

    def write_eval(self, step: int, task: str, result: Mapping[str, Any]) -> Path:
        """Write eval/STEP/TASK.json, in place of an earlier one."""
        path = self.file("eval", str(int(step)), f"{slug(task, 'a task')}.json")
        if self.leads:
            write_json(path, result)
        return path

    def read_eval(self, step: int, task: str) -> dict[str, Any] | None:
        """What `write_eval` wrote, None if there is nothing."""
        return read_json(self.file("eval", str(int(step)), f"{slug(task, 'a task')}.json"))

    def write_error(self, error: BaseException) -> None:
        """Append the traceback of `error` to error.log."""
        text = "".join(traceback.format_exception(error))
        path = self.file("error.log")
        with disk(path), os.fdopen(os.open(path, _APPEND, 0o644), "a") as file:
            file.write(f"--- attempt {self.attempt}, step {self.step}\n{without_credentials(text)}")

    def cut_off(self, error: BaseException) -> None:
        """Record a run that is about to be ended from outside its main thread, stacks and all."""
        if self.leads:
            path = self.file("error.log")
            with os.fdopen(os.open(path, _APPEND, 0o644), "a") as file:
                file.write(f"--- attempt {self.attempt}, step {self.step}: {error}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            self._record_end(error)
            self.close()

    def close(self) -> None:
        for rows in (self._metrics, self._events):
            if rows:
                rows.close()
        self._metrics = self._events = None
        self._closed = True
        self.lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and self._begun and not self.lock.lost:
                with contextlib.suppress(IsoflopError):  # the error itself matters more
                    self._record_end(error)
        finally:
            self.close()

    def _record_end(self, error: BaseException) -> None:
        state: State = "preempted" if isinstance(error, Preempted) else "failed"
        code = error.code if isinstance(error, IsoflopError) else 1
        if isinstance(error, KeyboardInterrupt):
            code = 130
        if state == "failed":
            self.write_error(error)
        kind = "preempt" if state == "preempted" else "failed"
        message = f"{type(error).__name__}: {error}"
        self.event(kind, {"step": self.step, "code": code, "message": message})
        self.write_status(state, code, message)

    def _row(self, row: Mapping[str, Any]) -> None:
        if not self.leads:
            return
        self.lock.check()
        self._metrics = self._metrics or Rows(self.file("metrics.jsonl"))
        seconds = round(time.monotonic() - self._started, 3)
        head = {"step": row["step"], "attempt": self.attempt, "seconds": seconds}
        self._metrics.append(head | dict(row))

    def _stamp(self) -> dict[str, Any]:
        return {"time": round(time.time(), 3), "attempt": self.attempt}

    def _tell_changes(self) -> None:
        old, new = self.old or {}, self.record
        for key in ("mesh", "devices"):
            if changes := differing(old, new, key):
                message = f"{key} changed: {listed(changes)}"
                self.event("elastic", {"message": message, "changes": changes})
        for key in SURROUNDINGS:
            if changes := differing(old, new, key):
                message = f"{key} changed since the run began or went on: {listed(changes)}"
                self.event("environment", {"message": message, "changes": changes})
        if changes := differing(old, new, "settings"):
            self.event("settings", {"message": f"settings: {listed(changes)}", "changes": changes})
        if changes := differing(old, new, "fingerprints"):
            message = f"the data is another: {listed(changes)}"
            self.event("data", {"message": message, "changes": changes})


_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW


def open_run(
    path: str | os.PathLike,
    record: Mapping[str, Any],
    *,
    resumable: Sequence[str] = (),
    allow_changed: bool = False,
) -> RunFolder:
    """Lock the run folder at `path` for the run that `record` (`environment.describe`) describes.

    A new folder gets the record; in an old one the run goes on (`resumes`), under its old run_id,
    if settings agree but for keys that match `resumable` ("log.*"), and data and tokenizer are the
    same (unless `allow_changed`). Look at `finished_at`, find the step, then `begin(step)`.
    """
    folder = RunFolder(path)
    with disk(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    folder.lock.acquire()
    try:
        folder.record = redacted(plain(record))
        folder.old = read_json(folder.file("run.json"))
        if folder.old is not None:
            check_same(folder.path, folder.old, folder.record, resumable, allow_changed)
            folder.record |= {key: folder.old[key] for key in ("run_id", "created")}
            folder.record["flags"] = began(folder.path, folder.old, folder.record)
        folder.attempt = 1 + folder.last_attempt()
        if folder.lock.took_over:
            message = f"took the lock over: it was {folder.lock.took_over}"
            folder.event("lock", {"message": message})
    except BaseException:
        folder.close()
        raise
    return folder


def follow(path: str | os.PathLike, record: Mapping[str, Any], led: Mapping[str, Any]) -> RunFolder:
    """The run folder as processes other than 0 have it: they write nothing. `led` is what process 0
    found: run_id, created, flags, attempt."""
    folder = RunFolder(path)
    folder.leads = False
    own = {key: value for key, value in led.items() if key != "attempt"}
    folder.record = redacted(plain(record)) | own
    folder.attempt = led["attempt"]
    return folder


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The series in a metrics.jsonl: one row a step, steps rising, as the last attempt left it.

    Rows of one step and attempt are one; a row at an earlier step, or the mark of a resumption,
    takes back all that was beyond it.
    """
    series: list[dict[str, Any]] = []
    for row in read_rows(path):
        step = row.get("step")
        if not isinstance(step, int):
            raise CheckpointError(f"{path} has a row without a step: {brief(row)}")
        while series and series[-1]["step"] > step:
            series.pop()
        if row.get("resumed"):
            continue
        row = {key: number(value) for key, value in row.items()}
        same = series and series[-1]["step"] == step
        if same and series[-1].get("attempt") == row.get("attempt"):
            series[-1] |= row
        elif same:
            series[-1] = row
        else:
            series.append(row)
    return series
