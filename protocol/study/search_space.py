"""Search spaces: the settings that tuning varies, their ranges, and quasi-random trials in them.

A search tries several settings at once, at points of a scrambled Halton sequence, which fill the
ranges more evenly than random ones (Bousquet et al., arXiv:1706.03200). Every candidate gets the
same points.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import qmc

from errors import ConfigError
from protocol.records.plan_file import NON_IDENTITY_SETTINGS, without_settings
from protocol.records.tuning_record import BATCH_SIZE, LEARNING_RATE, MAX_TRIALS
from protocol.study.budget import TOLERANCE
from protocol.study.tuning import SweepPoint, TuningTrial
from settings.changes import with_changes
from settings.json_types import JsonObject
from settings.tree import as_json
from settings.types import did_you_mean
from training.settings import Settings

TUNABLE_SECTIONS = ("optimizer.", "model.")  # Sections whose settings a search may vary.
MIN_TRIALS = 5
DIGITS = 6  # Significant digits of the numbers that a search tries.
SAMPLER = "scrambled Halton points"


@dataclass(frozen=True)
class TunedRange:
    """The numbers between two ends, evenly spread on a scale."""

    low: float
    high: float
    # log_complement: the logarithm of 1 minus the value, for decay rates such as beta2.
    scale: Literal["log", "linear", "log_complement"] = "log"

    def __post_init__(self) -> None:
        is_allowed = {
            "log": self.low > 0,
            "linear": True,
            "log_complement": self.high < 1,
        }
        if self.scale not in is_allowed:
            raise ConfigError(
                f"the scale {self.scale!r} of a tuned range is unknown; "
                f"{did_you_mean(self.scale, is_allowed)}"
            )
        if not (self.low < self.high < math.inf and is_allowed[self.scale]):
            raise ConfigError(
                f"the tuned range {self.low:g} to {self.high:g} ({self.scale}) must rise, from "
                "above 0 on a log scale, to below 1 on a log_complement scale; change its ends"
            )

    def value(self, share: float) -> float:
        """Returns the number at a share, 0 to 1, of the range."""
        if self.scale == "linear":
            return self.low + share * (self.high - self.low)
        if self.scale == "log":
            return self.low * (self.high / self.low) ** share
        low, high = 1 - self.low, 1 - self.high
        return 1 - low * (high / low) ** share

    def describe(self) -> str:
        """Returns the range in words."""
        scale = {"log_complement": "log of 1 - value"}.get(self.scale, self.scale)
        return f"{self.low:g} to {self.high:g} ({scale})"


@dataclass(frozen=True)
class TunedChoices:
    """Values of which each trial takes one."""

    values: tuple[object, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2 or any(self.values.count(x) > 1 for x in self.values):
            raise ConfigError(
                f"the tuned choices {list(self.values)} must be 2 or more different values; remove "
                "the setting from the search, or add values"
            )

    def value(self, share: float) -> object:
        """Returns the value at a share, 0 to 1, of the choices."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def describe(self) -> str:
        """Returns the choices in words."""
        return " or ".join(map(str, self.values))


@dataclass(frozen=True)
class SearchSpace:
    """The settings that are tuned together, by dotted key, and how many trials each candidate gets.

    If the batch size is tuned, the number of steps changes so that the tokens stay the same.
    """

    settings: Mapping[str, TunedRange | TunedChoices]
    n_trials: int = 16
    seed: int = 0  # Seed of the points.

    def __post_init__(self) -> None:
        if not self.settings or not MIN_TRIALS <= self.n_trials <= MAX_TRIALS:
            raise ConfigError(
                f"a search of {len(self.settings)} settings with {self.n_trials} trials must have "
                f"1 setting or more and {MIN_TRIALS} to {MAX_TRIALS} trials; change them, or "
                "declare no search"
            )
        for key in self.settings:
            if key != BATCH_SIZE and not _is_tunable(key):
                raise ConfigError(
                    f"a search cannot vary {key}, because it may vary settings of "
                    f"{' and '.join(name.rstrip('.') for name in TUNABLE_SECTIONS)}, and "
                    f"{BATCH_SIZE}; make candidates that differ in it"
                )

    def trials(self, settings: Settings) -> tuple[TuningTrial, ...]:
        """Returns the trials, whose overrides are the values of all tuned settings.

        Args:
            settings: settings of any candidate, which have the types of the values.
        """
        sampler = qmc.Halton(
            len(self.settings), scramble=True, rng=np.random.default_rng(self.seed)
        )
        points = sampler.random(self.n_trials)
        n_digits = len(str(self.n_trials))
        tree = as_json(settings)
        return tuple(
            TuningTrial(
                f"trial{number:0{n_digits}}",
                {
                    key: _typed(space.value(float(share)), key, tree)
                    for (key, space), share in zip(self.settings.items(), point, strict=True)
                },
            )
            for number, point in enumerate(points, 1)
        )

    def points(self, settings: Settings) -> tuple[SweepPoint, ...]:
        """Returns the trials of a cell with these settings, as the sweep runs them.

        Raises:
            ConfigError: if a trial is not possible with the settings.
        """
        return tuple(_point(trial, settings) for trial in self.trials(settings))

    def tree(self, settings: Settings) -> JsonObject:
        """Returns the space and its trials, as plan.json has them."""
        trials = self.trials(settings)
        return {
            "settings": {key: vars(space) for key, space in self.settings.items()},
            "sampler": SAMPLER,
            "seed": self.seed,
            "trials": [{"name": x.name, "overrides": dict(x.overrides)} for x in trials],
        }


def _is_tunable(key: str) -> bool:
    section, _, name = key.partition(".")
    tree = without_settings({section: {name: None}}, NON_IDENTITY_SETTINGS)
    return key.startswith(TUNABLE_SECTIONS) and bool(tree.get(section))


def _point(trial: TuningTrial, settings: Settings) -> SweepPoint:
    overrides = dict(trial.overrides)
    rate = overrides.pop(LEARNING_RATE, settings.optimizer.learning_rate)
    if not isinstance(rate, int | float):
        raise ConfigError(f"the search tries the learning rate {rate!r}, must be a number")
    if BATCH_SIZE in overrides:
        overrides["train.steps"] = _steps(overrides[BATCH_SIZE], settings)
    with_changes(settings, overrides)  # Refuses what the settings do not permit.
    return SweepPoint(float(rate), TuningTrial(trial.name, overrides))


def _typed(value: object, key: str, tree: JsonObject) -> object:
    """Returns a number with few digits, or as a whole one where the setting is a whole number."""
    current: object = tree
    for name in key.split("."):
        current = current.get(name) if isinstance(current, Mapping) else None
    if not isinstance(value, float):
        return value
    is_whole = isinstance(current, int) and not isinstance(current, bool)
    return round(value) if is_whole else float(f"{value:.{DIGITS}g}")


def _steps(batch_size: object, settings: Settings) -> int:
    """Returns the number of steps with which a batch size has the tokens of the settings.

    Raises:
        ConfigError: if no whole number of steps has as many.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"the search tries {BATCH_SIZE} {batch_size!r}, must be 1 or more rows")
    rows = settings.train.steps * settings.train.batch_size
    steps = max(round(rows / batch_size), 1)
    if abs(steps * batch_size / rows - 1) > TOLERANCE:
        raise ConfigError(
            f"the search tries {BATCH_SIZE} {batch_size}, of which no whole number of steps has "
            f"the {rows:,} rows of train.steps {settings.train.steps} within {TOLERANCE:.0%}; use "
            "batch sizes that divide the rows"
        )
    return steps
