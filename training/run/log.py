"""Logs a run while it trains: rows go to metrics.jsonl, to the console and to trackers.

On purpose nothing in this module reads a device. `MetricsLogger.write` takes floats, so its caller
decides when to wait for the step.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from errors import ConfigError
from settings.types import OneOf, PositiveInt, Range, config
from training.run.atomic_io import to_json_value
from training.run.console import Console
from training.run.folder import RunFolder
from training.run.tracker_worker import Trackers, is_number
from training.run.trackers import TRACKERS, RunInfo


@config
class LogConfig:
    """Settings of the log: metrics, trackers and console."""

    every: PositiveInt = 10  # Steps between rows of metrics.
    # Trackers that receive the metrics; each is installed with its extra (extras: tb, wandb,
    # trackio).
    trackers: tuple[Annotated[str, OneOf(tuple(TRACKERS))], ...] = ()
    # Output on the terminal; auto: rich on a terminal, plain lines elsewhere.
    console: Literal["auto", "rich", "plain", "off"] = "auto"
    # Steps FROM:TO whose trace by jax.profiler goes to profile/ in the run folder, for TensorBoard
    # and Perfetto.
    profile: str = ""
    # Grams of CO2 for a kWh of electricity, for what the board says of the cost; the default is the
    # mean of the world in 2022 (Ember, Global Electricity Review 2023).
    co2_grams_per_kwh: Annotated[float, Range(low=0.0, high=1e4)] = 436.0

    def check(self) -> None:
        """Checks the steps of the profile.

        Raises:
            ConfigError: if they are no two step numbers in order.
        """
        self.profile_steps()

    def profile_steps(self) -> tuple[int, int] | None:
        """Returns the first and the last step to profile, counted from 1; None: no step.

        Raises:
            ConfigError: if they are no two step numbers in order.
        """
        if not self.profile:
            return None
        match = re.fullmatch(r"([1-9]\d{0,11}):([1-9]\d{0,11})", self.profile)
        if not match or int(match[1]) > int(match[2]):
            raise ConfigError(
                f"log.profile is {self.profile!r}, must be FROM:TO, two steps counted from 1, for "
                "example 10:12"
            )
        return int(match[1]), int(match[2])


class MetricsLogger:
    """Writes the metrics of one attempt to the file, console and trackers; a context manager."""

    def __init__(self, cfg: LogConfig, run: RunFolder, *, total_steps: int):
        self._run = run
        self._trackers = Trackers(cfg.trackers, run.log_event)
        self.console = Console(cfg.console, total_steps=total_steps)

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Writes one row: all of it to metrics.jsonl, its numbers to the console and trackers.

        The file is the authoritative record, so it is written first. Trackers start with the first
        row, since the run then knows the step at which it resumed.
        """
        row = to_json_value(metrics)
        self._run.write_metrics(step, row)
        numbers = {name: value for name, value in metrics.items() if is_number(value)}
        self.console.print_row(step, numbers)
        run_info = RunInfo(self._run.path, self._run.record["run_id"], self._run.record["settings"])
        self._trackers.start(run_info, self._run.start_step)
        self._trackers.write(step, numbers)

    def rewind(self, step: int) -> None:
        """Tells the trackers that the run goes back to `step` (a rollback)."""
        self._trackers.rewind(step)

    def __enter__(self) -> "MetricsLogger":
        self.console.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._trackers.close()
        self.console.close()
