"""Adapters of experiment trackers: TensorBoard, Weights & Biases and trackio, with one interface.

`metrics.jsonl` is the record of a run, and a tracker shows it. When a run resumes or rolls back,
the tracker drops what came after that step, as far as it can:

TensorBoard   an event in the new file hides the later steps of earlier files
wandb         online, the history is cut (`resume_from`); offline, a new run gets all rows
trackio       the local run is deleted and gets all rows again

A tracker that cannot drop rows gets no step twice: after a resume, which repeats the same numbers,
rows that were sent are not sent again; after a rollback a new run gets all rows.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

from errors import ConfigError

PROJECT = "isoflop"
LOGIN_SECONDS = 30  # seconds that W&B waits for an answer at its login prompt


class Tracker(Protocol):
    """An experiment tracker that receives the metrics of a run."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of one step."""

    def close(self) -> None:
        """Sends what is pending and ends the connection."""


class RunInfo(NamedTuple):
    """The properties of a run that a tracker may record, and what it has of the run already."""

    folder: Path
    run_id: str
    settings: Mapping[str, object]
    starts: int = 0  # number of earlier starts of this tracker for this run
    complete_step: int = -1  # all rows up to this step were sent and are still valid
    sent_step: int = -1  # the last step of which a row was sent
    is_rollback: bool = False  # whether rows after `complete_step` now have other numbers

    @property
    def is_restart(self) -> bool:
        """Whether the tracker may have rows after `complete_step`."""
        return self.starts > 0 and self.sent_step > self.complete_step


class Start(NamedTuple):
    """A tracker that has started, and the last step of which it needs no more rows."""

    tracker: Tracker
    has_step: int = -1


class TensorBoard:
    """A tracker that writes event files to `tensorboard/` in the run folder."""

    def __init__(self, run_info: RunInfo):
        from tensorboardX import SummaryWriter

        # TensorBoard hides what earlier files have from this step on.
        purge_step = run_info.complete_step + 1 if run_info.starts else None
        folder = str(run_info.folder / "tensorboard")
        # The name has the second of the start, within which a rollback may start another file.
        suffix = f".{run_info.starts}"
        self._writer = SummaryWriter(folder, purge_step=purge_step, filename_suffix=suffix)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes each metric as a scalar, so that a kill loses none."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class ModuleTracker:
    """A tracker for a module with wandb's interface: `init` returns a run with `log` and `finish`.

    `options` are the keyword arguments of `init`.
    """

    def __init__(self, module: ModuleType, options: Mapping[str, object]):
        self._run = module.init(**options)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of one step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finishes the tracker's run."""
        self._run.finish()


def start_tensorboard(run_info: RunInfo) -> Start:
    """Starts TensorBoard's event file."""
    return Start(TensorBoard(run_info), run_info.complete_step)


def start_wandb(run_info: RunInfo) -> Start:
    """Starts Weights & Biases; a resumed run continues under its run_id."""
    wandb = importlib.import_module("wandb")
    options = {
        "project": PROJECT,
        "name": run_info.folder.name,
        "id": run_info.run_id,
        "dir": str(run_info.folder),
        "config": dict(run_info.settings),
        "settings": {"login_timeout": LOGIN_SECONDS},
    }
    new_id = f"{run_info.run_id}-{run_info.starts + 1}"
    if run_info.starts and _is_offline(wandb):  # the runs are sent later, and none is cut then
        return Start(ModuleTracker(wandb, options | {"id": new_id}))
    if run_info.is_restart and run_info.complete_step >= 0:
        moment = f"{run_info.run_id}?_step={run_info.complete_step}"
        try:
            tracker = ModuleTracker(wandb, options | {"resume_from": moment})
            return Start(tracker, run_info.complete_step)
        except Exception:  # any kind: servers and versions differ in whether they can do it
            wandb.finish()
    if run_info.is_restart and run_info.is_rollback:
        return Start(ModuleTracker(wandb, options | {"id": new_id}))
    tracker = ModuleTracker(wandb, options | {"resume": "allow"})
    return Start(tracker, run_info.sent_step)


def start_trackio(run_info: RunInfo) -> Start:
    """Starts trackio; a resumed run continues under its name, which contains the run_id."""
    trackio = importlib.import_module("trackio")
    options = {
        "project": PROJECT,
        "name": f"{run_info.folder.name}-{run_info.run_id}",
        "config": dict(run_info.settings),
        "resume": "allow",
    }
    if run_info.starts and _delete_trackio_run(trackio, str(options["name"])):
        return Start(ModuleTracker(trackio, options | {"resume": "never"}))
    if run_info.is_restart and run_info.is_rollback:
        name = f"{options['name']}-{run_info.starts + 1}"
        return Start(ModuleTracker(trackio, options | {"name": name, "resume": "never"}))
    return Start(ModuleTracker(trackio, options), run_info.sent_step)


def _is_offline(wandb: ModuleType) -> bool:
    """Whether W&B's own settings say that it only writes files."""
    if "setup" not in vars(wandb):
        return False
    return wandb.setup().settings.mode == "offline"


def _delete_trackio_run(trackio: ModuleType, name: str) -> bool:
    """Deletes a local run of trackio, so that it can be written again; False if there is none."""
    if "Api" not in vars(trackio):
        return False
    try:
        runs = [run for run in trackio.Api().runs(PROJECT) if run.name == name]
    except ValueError:  # there is no such project on this machine
        return False
    return bool(runs) and all(run.delete() for run in runs)


# name -> (function that starts the tracker, package, extra of this project). A class is such a
# function; without a `Start`, its tracker is taken for one that cannot drop rows.
TRACKERS: dict[str, tuple[Callable[[RunInfo], Start | Tracker], str, str]] = {
    "tensorboard": (start_tensorboard, "tensorboardX", "tb"),
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
