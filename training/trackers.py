"""Metrics to TensorBoard, Weights & Biases and trackio, which may fail without stopping a run.

Each is fed from one thread behind a queue: a tracker that raises is reported once and left out from
then on, one that hangs costs rows, never steps. `metrics.jsonl` has everything in any case.
"""

import importlib.util
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from errors import ConfigError
from training.run import Report

WAITING = 1000  # rows that may queue up
PATIENCE = 15.0  # seconds that a run's end waits for trackers


class Tracker(Protocol):
    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Target(NamedTuple):
    """What a tracker may want to know of the run."""

    folder: Path
    run_id: str
    settings: Mapping[str, Any]


class TensorBoard:
    def __init__(self, target: Target):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(target.folder / "tensorboard"))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    def __init__(self, target: Target):
        import wandb

        self._run = wandb.init(
            project="isoflop",
            name=target.folder.name,
            id=target.run_id,
            resume="allow",
            dir=str(target.folder),
            config=dict(target.settings),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    def __init__(self, target: Target):
        import trackio

        name = f"{target.folder.name}-{target.run_id}"
        config = dict(target.settings)
        self._run = trackio.init(project="isoflop", name=name, resume="allow", config=config)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


# name: class, package, extra
TRACKERS: dict[str, tuple[Callable[[Target], Tracker], str, str]] = {
    "tensorboard": (TensorBoard, "tensorboardX", "tb"),
    "wandb": (Wandb, "wandb", "wandb"),
    "trackio": (Trackio, "trackio", "trackio"),
}


def check_installed(names: Sequence[str]) -> None:
    """ConfigError with the line that installs what is missing."""
    for name in names:
        _, package, extra = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"log.trackers has {name!r}, which is not installed: "
                f"uv pip install -e '.[{extra}]' (or pip install {package})"
            )


class Trackers:
    """All trackers of a run; `write` never waits and never raises."""

    def __init__(self, names: Sequence[str], target: Target, report: Report):
        check_installed(names)
        self._report = report
        self._running: dict[str, Tracker] = {}
        self._queue: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(WAITING)
        self._full = False
        for name in names:
            try:
                self._running[name] = TRACKERS[name][0](target)
            except Exception as error:
                self._tell(name, error)
        self._thread = threading.Thread(target=self._feed, name="trackers", daemon=True)
        if self._running:
            self._thread.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self._running:
            return
        try:
            self._queue.put_nowait((step, metrics))
        except queue.Full:
            if not self._full:
                self._report("tracker", {"message": "trackers are too slow; rows are left out"})
            self._full = True

    def close(self) -> None:
        """Give what is queued a while to go out."""
        if not self._thread.is_alive():
            return
        try:
            self._queue.put(None, timeout=PATIENCE)
        except queue.Full:
            pass
        else:
            self._thread.join(PATIENCE)
        if self._thread.is_alive():
            names = ", ".join(self._running)
            self._report("tracker", {"message": f"{names}: still busy, not waited for"})

    def _feed(self) -> None:
        while (item := self._queue.get()) is not None:
            self._each(lambda tracker, item=item: tracker.write(*item))
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._running.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._running[name]
                self._tell(name, error)

    def _tell(self, name: str, error: Exception) -> None:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        message = f"tracker {name} failed and is left out; metrics.jsonl has everything ({text})"
        self._report("tracker", {"tracker": name, "message": message})
