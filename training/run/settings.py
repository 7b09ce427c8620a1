"""The settings of the log of a run."""

import re
from typing import Annotated, Literal

from errors import ConfigError
from settings.types import OneOf, PositiveInt, Range, config
from training.run.trackers import TRACKERS


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
        match = re.fullmatch(r"([1-9][0-9]{0,11}):([1-9][0-9]{0,11})", self.profile)
        if not match or int(match[1]) > int(match[2]):
            raise ConfigError(
                f"log.profile is {self.profile!r}, must be FROM:TO, two steps counted from 1, for "
                "example 10:12"
            )
        return int(match[1]), int(match[2])
