"""Equal tuning: grids of learning rates, what they say, and when they must go on.

Rates lie a factor 2 apart, 5 at the least. An optimum at the edge extends the grid, and then all
grids, so that every candidate has had as many trials. Choices are made on validation, by seeds that
are never reported.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from errors import ConfigError, DataError

RATES, MOST_RATES = 5, 11
STEP = 2.0

Key = TypeVar("Key", bound=Hashable)
Better = Literal["lower", "higher"]


class Trial(NamedTuple):
    """A further trial at the best rate: settings that it changes, by dotted key."""

    name: str
    changes: Mapping[str, Any]


NO_TRIAL = Trial("", {})


class Curve(NamedTuple):
    """The whole of a sweep, to publish: the mean score by rate, None where a seed diverged."""

    rates: tuple[float, ...]  # rising
    scores: tuple[float | None, ...]
    better: Better
    diverged: int  # runs, which count as trials

    @property
    def best(self) -> float | None:
        """None if every rate diverged."""
        place = self._place()
        return None if place is None else self.rates[place]

    @property
    def edge(self) -> Literal["low", "high"] | None:
        """At which end of the grid the optimum lies; "low" if every rate diverged."""
        place = self._place()
        if place is None or place == 0:
            return "low"
        return "high" if place == len(self.rates) - 1 else None

    @property
    def neighbours(self) -> dict[float, float | None]:
        """Scores beside the best: how narrow its window is."""
        place = self._place()
        near = [] if place is None else [i for i in (place - 1, place + 1) if i >= 0]
        return {self.rates[i]: self.scores[i] for i in near if i < len(self.rates)}

    def _place(self) -> int | None:
        sign = 1 if self.better == "lower" else -1
        costs = [math.inf if score is None else sign * score for score in self.scores]
        return None if min(costs) == math.inf else int(np.argmin(costs))


def grid(centre: float, count: int = RATES) -> tuple[float, ...]:
    """`count` rates around `centre`, a factor 2 apart."""
    if count < RATES or count % 2 == 0 or not centre > 0:
        raise ConfigError(
            f"a grid of {count} rates around {centre:g}, must be an odd count of {RATES} or more "
            f"around a rate above 0; nearest: {max(count + 1 - count % 2, RATES)}"
        )
    return tuple(centre * STEP**k for k in range(-(count // 2), count // 2 + 1))


def curve(results: Mapping[float, Sequence[float]], better: Better = "lower") -> Curve:
    """Validation scores of the sweep's seeds by rate; one that is not finite is a diverged run."""
    rates = sorted(results)
    apart = [high / low for low, high in zip(rates, rates[1:], strict=False)]
    if len(rates) < RATES or any(abs(ratio / STEP - 1) > 1e-6 for ratio in apart):
        raise DataError(f"rates {rates} must be {RATES} or more, a factor {STEP:g} apart")
    if len({len(results[rate]) for rate in rates}) > 1 or not results[rates[0]]:
        raise DataError(f"rates {rates} must all have the same seeds; missing runs have no place")
    sound = {rate: all(map(math.isfinite, results[rate])) for rate in rates}
    scores = tuple(float(np.mean(results[rate])) if sound[rate] else None for rate in rates)
    diverged = sum(not math.isfinite(x) for rate in rates for x in results[rate])
    return Curve(tuple(rates), scores, better, diverged)


def extension(curves: Mapping[Key, Curve], most: int = MOST_RATES) -> dict[Key, float]:
    """The next rate of every grid if an optimum is at an edge, else nothing.

    Grids that need none are extended on the side nearer to their optimum: the count stays equal. At
    `most` rates nothing is extended further; `Curve.edge` tells, and is published.
    """
    counts = {len(c.rates) for c in curves.values()}
    if len(counts) > 1:
        raise DataError(f"grids have {sorted(counts)} rates, must have equally many; run the rest")
    if not curves or counts.pop() >= most or not any(c.edge for c in curves.values()):
        return {}
    return {key: _next(c) for key, c in curves.items()}


def pick(base: float, trials: Mapping[str, Sequence[float]], better: Better = "lower") -> str:
    """The further trial of the best score; "" if none betters `base`, that of the best rate."""
    sign, best, name = 1 if better == "lower" else -1, base, ""
    for trial, values in trials.items():
        score = float(np.mean(values))
        if math.isfinite(score) and sign * score < sign * best:
            best, name = score, trial
    return name


def _next(c: Curve) -> float:
    edge = c.edge
    if edge is None and c.best is not None:
        edge = "low" if c.rates.index(c.best) < len(c.rates) / 2 else "high"
    return c.rates[0] / STEP if edge == "low" else c.rates[-1] * STEP
