"""What a run says while it trains: rows to metrics.jsonl, to the console and to trackers.

Left out on purpose: anything that reads a device. `Log.write` takes floats; who makes them decides
when to wait for the step.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from schema import Count, config
from training.console import Console
from training.files import plain
from training.run import RunFolder
from training.trackers import Target, Trackers


@config
class LogConfig:
    every: Count = 10  # steps between rows
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()  # by extras
    console: Literal["auto", "rich", "plain", "off"] = "auto"  # auto: rich on a terminal


class Log:
    """One per attempt, in a `with`; a tracker that is not installed is a ConfigError at once."""

    def __init__(self, cfg: LogConfig, folder: RunFolder, *, total: int):
        self._folder = folder
        target = Target(folder.path, folder.record["run_id"], folder.record["settings"])
        self._trackers = Trackers(cfg.trackers, target, folder.event)
        self.console = Console(cfg.console, total=total)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One row; the file, which counts, gets it first and whole, the others get its numbers."""
        row = plain(metrics)
        self._folder.write_metrics(step, row)
        numbers = {name: value for name, value in metrics.items() if _is_number(value)}
        self.console.row(step, numbers)
        self._trackers.write(step, numbers)

    def __enter__(self) -> "Log":
        self.console.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._trackers.close()
        self.console.close()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
