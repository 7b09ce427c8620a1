"""The scores of a candidate's runs, as the tests of differences take them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from errors import DataError
from protocol.statistics.hypothesis_tests import Interval, mean_interval, rate_interval

MIN_RANKED_RUNS = 3  # Runs that a rank needs.


@dataclass(frozen=True)
class CandidateSample:
    """The runs of a candidate: the scores of its finished runs, and how many runs diverged."""

    name: str
    values: tuple[float, ...]
    n_diverged: int = 0
    digest: str = ""  # Hash of the settings without name and seed; duplicates have the same.
    planned_runs: int = 0  # The candidate is not ranked before all planned runs have ended.
    seeds: tuple[int, ...] = ()  # Seed of each value, for paired tests; empty: unknown.
    n_sizes: int = 0  # Sizes of a curve that is compared at its minimum; 0: runs are compared.

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.values)):
            raise DataError(
                f"{self.name} has the values {self.values}, must be finite; use `make_sample`, "
                "which counts other runs as diverged"
            )

    @property
    def n_runs(self) -> int:
        """The number of finished and diverged runs."""
        return len(self.values) + self.n_diverged

    @property
    def required_runs(self) -> int:
        """The number of runs that a rank needs."""
        return max(MIN_RANKED_RUNS, self.planned_runs)

    @property
    def mean(self) -> float | None:
        """The mean score; None if there is no run, or one diverged (then a rate is reported)."""
        return None if self.n_diverged or not self.values else float(np.mean(self.values))

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the mean; None if there is no mean or no variance."""
        return None if self.n_diverged else mean_interval(self.values)

    def first_runs(self, count: int) -> "CandidateSample":
        """Returns the sample of the first `count` finished runs; diverged ones stay counted."""
        return replace(
            self,
            values=self.values[:count],
            seeds=self.seeds[:count],
            planned_runs=min(self.planned_runs, count),
        )

    @property
    def divergence_interval(self) -> Interval:
        """The 95 % interval of the rate of diverged runs."""
        return rate_interval(self.n_diverged, self.n_runs)


def make_sample(name: str, values: Sequence[float], digest: str = "") -> CandidateSample:
    """Returns the sample of all runs; a value that is not finite is a diverged run."""
    finite = tuple(float(x) for x in values if math.isfinite(x))
    return CandidateSample(name, finite, len(values) - len(finite), digest)
