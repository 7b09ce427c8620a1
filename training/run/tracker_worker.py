"""Calls the trackers of a run beside training; a failing tracker stops no run and loses no row.

Each tracker has a thread behind a queue, which starts it, too: a tracker that waits for a login or
a network delays no step and no other tracker. Rows that do not fit in the queue are read from
metrics.jsonl when the tracker has caught up. `trackers.json` in the run folder has the steps that
each tracker got, so that a run that resumes after a kill sends the missing rows and none twice.
"""

import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np

from errors import CheckpointError
from training.run.atomic_io import read_json
from training.run.folder import EventCallback
from training.run.metrics_file import read_metrics
from training.run.run_paths import safe_join
from training.run.strict_json import encode_json
from training.run.trackers import TRACKERS, RunInfo, Start, Tracker, check_installed

QUEUE_SIZE = 1000  # maximum number of queued rows
START_TIMEOUT = 30.0  # seconds after which a tracker that has not started is reported
CLOSE_TIMEOUT = 15.0  # seconds that the end of a run waits for all trackers
STATE_FILE = "trackers.json"
ROW_KEYS = ("step", "attempt", "seconds")  # keys of a row that are no metrics


class Row(NamedTuple):
    """The metrics of a step; None instead of metrics: the run goes back to this step."""

    step: int
    metrics: Mapping[str, float] | None


class TrackerState:
    """What each tracker got of a run, in `trackers.json`; the threads of the trackers share it."""

    def __init__(self, folder: Path):
        self._path = safe_join(folder, STATE_FILE)
        self._mutex = threading.Lock()
        try:
            self._entries = read_json(self._path) or {}
        except CheckpointError:  # the trackers may then get rows twice, which stops no run
            self._entries = {}

    def read(self, name: str) -> tuple[int, int, int]:
        """Returns the starts, the last complete step and the last step of a tracker."""
        entry = self._entries.get(name)
        if not isinstance(entry, list) or list(map(type, entry)) != [int, int, int]:
            return 0, -1, -1
        return entry[0], entry[1], entry[2]

    def write(self, name: str, starts: int, complete_step: int, sent_step: int) -> None:
        """Records the state of a tracker; a kill leaves the old file or the new one."""
        with self._mutex:
            self._entries[name] = [starts, complete_step, sent_step]
            temporary = self._path.with_name(f".{STATE_FILE}.tmp")
            temporary.write_text(encode_json(self._entries))
            os.replace(temporary, self._path)


class TrackerWorker:
    """The thread of one tracker; `put` never waits and never raises."""

    def __init__(
        self,
        name: str,
        run_info: RunInfo,
        resume_step: int,
        state: TrackerState,
        on_event: EventCallback,
    ):
        self.name = name
        self._run_info, self._state, self._on_event = run_info, state, on_event
        self._queue: queue.Queue[Row | None] = queue.Queue(QUEUE_SIZE)
        self._is_behind = self._was_behind = False
        self._has_started, self._is_late = threading.Event(), False
        self._has_failed = False
        self._begin = time.monotonic()
        self._starts, self._complete_step, self._sent_step = state.read(name)
        self._tracker: Tracker | None = None
        self._has_step = self._resume_step = -1
        self._sent_names = set[str]()  # metrics of the last step that were sent
        self.thread = threading.Thread(
            target=self._run, args=(resume_step,), name=f"tracker {name}", daemon=True
        )
        self.thread.start()

    def put(self, row: Row | None) -> None:
        """Queues a row; None ends the tracker. A full queue is caught up on from the file."""
        if self._has_failed:
            return
        if not self._has_started.is_set() and not self._is_late:
            self._is_late = time.monotonic() - self._begin > START_TIMEOUT
            if self._is_late:
                self._report(f"has not started for {START_TIMEOUT:.0f} s; training goes on")
        try:
            self._queue.put_nowait(row)
        except queue.Full:
            self._is_behind = True
            if not self._was_behind:
                self._report("is too slow; it gets its rows later, from metrics.jsonl")
            self._was_behind = True
            if row is None or row.metrics is None:  # these must not be lost
                self._queue.get_nowait()
                self._queue.put_nowait(row)

    def _run(self, resume_step: int) -> None:
        try:
            self._start(resume_step)
            self._has_started.set()
            while (row := self._queue.get()) is not None:
                if row.metrics is None:
                    self._restart(row.step)
                elif self._is_behind:
                    if not self._catch_up():
                        break
                else:
                    self._send(row.step, row.metrics)
            if self._is_behind:
                self._send_series(self._sent_step, None)
            if self._tracker:
                self._tracker.close()
            self._state.write(self.name, self._starts, self._sent_step, self._sent_step)
        except Exception as error:  # any kind: a tracker must not stop a run
            self._has_failed = True
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._report(
                f"failed and is excluded from now on; metrics.jsonl has every row ({text})"
            )

    def _start(self, step: int, *, is_rollback: bool = False) -> None:
        """Starts the tracker for a run that continues at `step`, and sends what it lacks."""
        info = self._run_info._replace(
            starts=self._starts,
            complete_step=min(self._complete_step, step),
            sent_step=self._sent_step,
            is_rollback=is_rollback,
        )
        started = TRACKERS[self.name][0](info)
        if not isinstance(started, Start):
            started = Start(started, info.sent_step)
        self._tracker, self._has_step = started
        self._starts += 1
        self._resume_step, self._sent_names = step, set()
        self._complete_step = min(info.complete_step, self._has_step)
        self._sent_step = self._has_step
        self._state.write(self.name, self._starts, self._complete_step, self._sent_step)
        self._send_series(self._has_step, step)

    def _restart(self, step: int) -> None:
        """Continues at `step` after a rollback."""
        if self._tracker:
            self._tracker.close()
        self._start(step, is_rollback=True)

    def _send_series(self, after: int, last: int | None) -> None:
        """Sends the rows of metrics.jsonl after a step, up to `last` or all."""
        for row in read_metrics(self._run_info.folder / "metrics.jsonl"):
            if row["step"] > after and (last is None or row["step"] <= last):
                metrics = {k: v for k, v in row.items() if k not in ROW_KEYS and is_number(v)}
                self._send(row["step"], metrics)

    def _catch_up(self) -> bool:
        """Empties the queue and sends its rows from the file; False if the run has ended."""
        self._is_behind = False
        rows: list[Row | None] = []
        while not self._queue.empty():
            rows.append(self._queue.get_nowait())
        for row in rows:
            if row is not None and row.metrics is None:
                self._restart(row.step)
        self._send_series(self._sent_step, None)
        return None not in rows

    def _send(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step that the tracker does not have yet.

        Only the final evaluation adds metrics to the step at which a run resumed.
        """
        is_known = step == self._has_step and step != self._resume_step
        if step < self._sent_step or is_known or self._tracker is None:
            return
        if step != self._sent_step:
            self._complete_step = max(self._complete_step, self._sent_step)
            self._sent_step, self._sent_names = step, set()
            self._state.write(self.name, self._starts, self._complete_step, step)
        if new := {k: v for k, v in metrics.items() if k not in self._sent_names}:
            self._sent_names |= new.keys()
            self._tracker.write(step, new)

    def _report(self, problem: str) -> None:
        message = f"tracker {self.name} {problem}"
        self._on_event("tracker", {"tracker": self.name, "message": message})


class Trackers:
    """All trackers of a run; `write` never waits and never raises."""

    def __init__(self, names: Sequence[str], on_event: EventCallback):
        check_installed(names)
        self._names, self._on_event = names, on_event
        self._workers: list[TrackerWorker] = []

    def start(self, run_info: RunInfo, resume_step: int) -> None:
        """Starts the trackers, once, for a run that started or resumed at `resume_step`."""
        if self._workers or not self._names:
            return
        state = TrackerState(run_info.folder)
        self._workers = [
            TrackerWorker(name, run_info, resume_step, state, self._on_event)
            for name in self._names
        ]

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues one row for all trackers."""
        for worker in self._workers:
            worker.put(Row(step, metrics))

    def rewind(self, step: int) -> None:
        """Tells all trackers that the run goes back to `step`, whose later rows are void."""
        for worker in self._workers:
            worker.put(Row(step, None))

    def close(self) -> None:
        """Waits up to `CLOSE_TIMEOUT` seconds until the queued rows are sent."""
        deadline = time.monotonic() + CLOSE_TIMEOUT
        for worker in self._workers:
            worker.put(None)
        for worker in self._workers:
            worker.thread.join(max(0.0, deadline - time.monotonic()))
            if worker.thread.is_alive():
                message = (
                    f"{worker.name}: still busy after {CLOSE_TIMEOUT:.0f} s; the run ends without "
                    "it, and metrics.jsonl has every row"
                )
                self._on_event("tracker", {"tracker": worker.name, "message": message})


def is_number(value: object) -> TypeGuard[float]:
    """Returns whether a metric is a number, which trackers and the console show."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
