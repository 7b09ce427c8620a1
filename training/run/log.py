"""Logs a run while it trains: rows go to metrics.jsonl, to the console and to trackers.

On purpose nothing in this module reads a device. `MetricsLogger.write` takes floats, so its caller
decides when to wait for the step.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeGuard

import numpy as np

from settings.types import OneOf, PositiveInt, config
from training.run.atomic_io import to_json_value
from training.run.console import Console
from training.run.folder import RunFolder
from training.run.trackers import TRACKERS, RunInfo, Trackers


@config
class LogConfig:
    """Settings of the log: metrics, trackers and console."""

    every: PositiveInt = 10  # Steps between rows of metrics.
    # Trackers that receive the metrics; each is installed with its extra (extras: tb, wandb,
    # trackio).
    trackers: tuple[Annotated[str, OneOf(tuple(TRACKERS))], ...] = ()
    # Output on the terminal; auto: rich on a terminal, plain lines elsewhere.
    console: Literal["auto", "rich", "plain", "off"] = "auto"


class MetricsLogger:
    """Writes the metrics of one attempt to the file, console and trackers; a context manager."""

    def __init__(self, cfg: LogConfig, run: RunFolder, *, total_steps: int):
        self._run = run
        run_info = RunInfo(run.path, run.record["run_id"], run.record["settings"])
        self._trackers = Trackers(cfg.trackers, run_info, run.log_event)
        self.console = Console(cfg.console, total_steps=total_steps)

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Writes one row: all of it to metrics.jsonl, its numbers to the console and trackers.

        The file is the authoritative record, so it is written first.
        """
        row = to_json_value(metrics)
        self._run.write_metrics(step, row)
        numbers = {name: value for name, value in metrics.items() if _is_number(value)}
        self.console.print_row(step, numbers)
        self._trackers.write(step, numbers)

    def __enter__(self) -> "MetricsLogger":
        self.console.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._trackers.close()
        self.console.close()


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
