"""Equal tuning: sweeps over trials, what they select, and when grids of rates are extended.

A sweep scores the points of a search (`protocol/study/search_space.py`), or learning rates alone:
the rates of a grid are a factor of 2 apart, and there are at least 5. If an optimum is at the edge
of its grid, all grids are extended, so that every candidate has the same number of trials. Choices
are made on validation data, with seeds that are never reported.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from errors import ConfigError, DataError
from protocol.records.metrics import Direction
from settings.json_types import JsonObject

MIN_RATES, MAX_RATES = 5, 11
GRID_FACTOR = 2.0

Key = TypeVar("Key", bound=Hashable)


class TuningTrial(NamedTuple):
    """A further trial at the best rate: the settings that it overrides, by dotted key."""

    name: str
    overrides: Mapping[str, object]


NO_TRIAL = TuningTrial("", {})


class SweepPoint(NamedTuple):
    """A point of a sweep: a learning rate, and the other settings of a trial."""

    learning_rate: float
    trial: TuningTrial = NO_TRIAL  # None but the rate, for a grid of rates.


class SweepCurve(NamedTuple):
    """The complete result of a sweep, which is published."""

    points: tuple[SweepPoint, ...]  # Rates of a grid increase.
    seed_scores: tuple[tuple[float, ...], ...]  # By point and tuning seed; nan: the run diverged.
    better: Direction

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The rate of each point."""
        return tuple(point.learning_rate for point in self.points)

    @property
    def scores(self) -> tuple[float | None, ...]:
        """The mean over seeds of each point; None if a seed diverged."""
        return tuple(
            float(np.mean(scores)) if all(map(math.isfinite, scores)) else None
            for scores in self.seed_scores
        )

    @property
    def n_diverged(self) -> int:
        """The number of diverged runs, which count as trials."""
        return sum(not math.isfinite(score) for scores in self.seed_scores for score in scores)

    @property
    def best_point(self) -> SweepPoint | None:
        """The point with the best score; None if every point diverged."""
        index = self._best_index()
        return None if index is None else self.points[index]

    @property
    def best_rate(self) -> float | None:
        """The rate with the best score; None if every rate diverged."""
        return None if self.best_point is None else self.best_point.learning_rate

    @property
    def best_at_edge(self) -> Literal["low", "high"] | None:
        """The end of the grid at which the optimum lies; "low" if every rate diverged."""
        index = self._best_index()
        if index is None or index == 0:
            return "low"
        return "high" if index == len(self.points) - 1 else None

    @property
    def neighbor_scores(self) -> dict[float, float | None]:
        """The scores at the rates beside the best one, which show how sharp the optimum is."""
        index, count = self._best_index(), len(self.points)
        neighbors = [] if index is None else [i for i in (index - 1, index + 1) if 0 <= i < count]
        return {self.learning_rates[i]: self.scores[i] for i in neighbors}

    @property
    def record(self) -> JsonObject:
        """The sweep as sweep.json and plan.json have it (`protocol/records/tuning_record.py`)."""
        trials = [point.trial for point in self.points]
        tree: JsonObject = {
            "learning_rates": list(self.learning_rates),
            "scores": list(self.scores),
            "seed_scores": [
                [score if math.isfinite(score) else None for score in scores]
                for scores in self.seed_scores
            ],
        }
        if trials[0] == NO_TRIAL:
            return tree | {"best_at_edge": self.best_at_edge}
        return tree | {"trials": [{"name": x.name, "overrides": dict(x.overrides)} for x in trials]}

    def _best_index(self) -> int | None:
        sign = 1 if self.better == "lower" else -1
        costs = [math.inf if score is None else sign * score for score in self.scores]
        return None if min(costs) == math.inf else int(np.argmin(costs))


def learning_rate_grid(center: float, n_rates: int = MIN_RATES) -> tuple[float, ...]:
    """Returns `n_rates` rates around `center`, a factor of 2 apart.

    Raises:
        ConfigError: if the number of rates is even or too small, or the center is not above 0.
    """
    if n_rates < MIN_RATES or n_rates % 2 == 0 or not center > 0:
        raise ConfigError(
            f"a grid of {n_rates} rates around {center:g}, must have an odd count of {MIN_RATES} "
            f"or more around a rate above 0; nearest: {max(n_rates + 1 - n_rates % 2, MIN_RATES)}"
        )
    return tuple(center * GRID_FACTOR**k for k in range(-(n_rates // 2), n_rates // 2 + 1))


def make_sweep_curve(
    results: Mapping[float, Sequence[float]], better: Direction = "lower"
) -> SweepCurve:
    """Returns the curve of the seeds' validation scores by rate; nan is a diverged run.

    Raises:
        DataError: if the rates are not a grid, or do not have the same number of seeds.
    """
    rates = sorted(results)
    ratios = [high / low for low, high in zip(rates, rates[1:], strict=False)]
    if len(rates) < MIN_RATES or any(abs(ratio / GRID_FACTOR - 1) > 1e-6 for ratio in ratios):
        raise DataError(
            f"rates {rates} must be {MIN_RATES} or more, a factor {GRID_FACTOR:g} apart"
        )
    if len({len(results[rate]) for rate in rates}) > 1 or not results[rates[0]]:
        raise DataError(f"rates {rates} must all have the same seeds; run the missing ones")
    points = tuple(SweepPoint(rate) for rate in rates)
    return SweepCurve(points, tuple(tuple(results[rate]) for rate in rates), better)


def extend_grids(curves: Mapping[Key, SweepCurve], max_rates: int = MAX_RATES) -> dict[Key, float]:
    """Returns the next rate of every grid if an optimum is at an edge, else an empty dictionary.

    The other grids are extended at the end nearer to their optimum, so that the counts stay equal.
    At `max_rates`, no grid is extended any more, and `SweepCurve.best_at_edge` is published.

    Raises:
        DataError: if the grids do not have the same number of rates.
    """
    counts = {len(c.points) for c in curves.values()}
    if len(counts) > 1:
        raise DataError(
            f"grids have {sorted(counts)} rates, must have equally many; run the missing ones"
        )
    if not curves or counts.pop() >= max_rates or not any(c.best_at_edge for c in curves.values()):
        return {}
    return {key: _next_rate(c) for key, c in curves.items()}


def select_trial(
    base_score: float, trials: Mapping[str, Sequence[float]], better: Direction = "lower"
) -> str:
    """Returns the trial with the best score; "" if none is better than that of the best rate."""
    sign, best, name = 1 if better == "lower" else -1, base_score, ""
    for trial, values in trials.items():
        score = float(np.mean(values))
        if math.isfinite(score) and sign * score < sign * best:
            best, name = score, trial
    return name


def _next_rate(c: SweepCurve) -> float:
    edge = c.best_at_edge
    if edge is None and c.best_rate is not None:
        edge = "low" if c.learning_rates.index(c.best_rate) < len(c.learning_rates) / 2 else "high"
    return (
        c.learning_rates[0] / GRID_FACTOR if edge == "low" else c.learning_rates[-1] * GRID_FACTOR
    )
