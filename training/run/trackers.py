"""Sends metrics to TensorBoard, Weights & Biases and trackio; a failing tracker stops no run.

One thread behind a queue calls the trackers. A tracker that raises is reported once and excluded
from then on. A tracker that hangs loses rows but delays no step. `metrics.jsonl` is complete in any
case.
"""

import importlib
import importlib.util
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from errors import ConfigError
from training.run.folder import EventCallback

QUEUE_SIZE = 1000  # maximum number of queued rows
CLOSE_TIMEOUT = 15.0  # seconds that the end of a run waits for the trackers


class Tracker(Protocol):
    """An experiment tracker that receives the metrics of a run."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of one step."""

    def close(self) -> None:
        """Sends what is pending and ends the connection."""


class RunInfo(NamedTuple):
    """The properties of a run that a tracker may record."""

    folder: Path
    run_id: str
    settings: Mapping[str, object]


class TensorBoard:
    """A tracker that writes event files to `tensorboard/` in the run folder."""

    def __init__(self, run_info: RunInfo):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(run_info.folder / "tensorboard"))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes each metric as a scalar."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class ModuleTracker:
    """A tracker for a module with wandb's interface: `init` returns a run with `log` and `finish`.

    `options` are the keyword arguments of `init`.
    """

    def __init__(self, module: str, options: Mapping[str, object]):
        self._run = importlib.import_module(module).init(**options)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of one step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finishes the tracker's run."""
        self._run.finish()


def start_wandb(run_info: RunInfo) -> ModuleTracker:
    """Starts Weights & Biases; a resumed run continues under its run_id."""
    options = {
        "project": "isoflop",
        "name": run_info.folder.name,
        "id": run_info.run_id,
        "resume": "allow",
        "dir": str(run_info.folder),
        "config": dict(run_info.settings),
    }
    return ModuleTracker("wandb", options)


def start_trackio(run_info: RunInfo) -> ModuleTracker:
    """Starts trackio; a resumed run continues under its name, which contains the run_id."""
    options = {
        "project": "isoflop",
        "name": f"{run_info.folder.name}-{run_info.run_id}",
        "resume": "allow",
        "config": dict(run_info.settings),
    }
    return ModuleTracker("trackio", options)


# name -> (function that starts the tracker, package, extra of this project)
TRACKERS: dict[str, tuple[Callable[[RunInfo], Tracker], str, str]] = {
    "tensorboard": (TensorBoard, "tensorboardX", "tb"),
    "wandb": (start_wandb, "wandb", "wandb"),
    "trackio": (start_trackio, "trackio", "trackio"),
}


def check_installed(names: Sequence[str]) -> None:
    """Checks that the package of each tracker is installed.

    Raises:
        ConfigError: if one is missing; the message has the command that installs it.
    """
    for name in names:
        _, package, extra = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"log.trackers has {name!r}, which is not installed: "
                f"uv pip install -e '.[{extra}]' (or pip install {package})"
            )


class Trackers:
    """All trackers of a run; `write` never waits and never raises."""

    def __init__(self, names: Sequence[str], run_info: RunInfo, on_event: EventCallback):
        check_installed(names)
        self._on_event = on_event
        self._active: dict[str, Tracker] = {}
        self._queue: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(QUEUE_SIZE)
        self._is_full = False
        for name in names:
            try:
                self._active[name] = TRACKERS[name][0](run_info)
            except Exception as error:
                self._report_failure(name, error)
        self._thread = threading.Thread(target=self._write_loop, name="trackers", daemon=True)
        if self._active:
            self._thread.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues one row for all trackers; a full queue drops the row."""
        if not self._active:
            return
        try:
            self._queue.put_nowait((step, metrics))
        except queue.Full:
            if not self._is_full:
                message = "the trackers are too slow; rows are dropped"
                self._on_event("tracker", {"message": message})
            self._is_full = True

    def close(self) -> None:
        """Waits up to `CLOSE_TIMEOUT` seconds until the queued rows are sent."""
        if not self._thread.is_alive():
            return
        try:
            self._queue.put(None, timeout=CLOSE_TIMEOUT)
        except queue.Full:
            pass
        else:
            self._thread.join(CLOSE_TIMEOUT)
        if self._thread.is_alive():
            names = ", ".join(self._active)
            message = f"{names}: still busy after {CLOSE_TIMEOUT:.0f} s; the run ends without it"
            self._on_event("tracker", {"message": message})

    def _write_loop(self) -> None:
        while (item := self._queue.get()) is not None:
            self._call_each(lambda tracker, item=item: tracker.write(*item))
        self._call_each(lambda tracker: tracker.close())

    def _call_each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._active.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._active[name]
                self._report_failure(name, error)

    def _report_failure(self, name: str, error: Exception) -> None:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        message = (
            f"tracker {name} failed and is excluded from now on; metrics.jsonl has every row "
            f"({text})"
        )
        self._on_event("tracker", {"tracker": name, "message": message})
