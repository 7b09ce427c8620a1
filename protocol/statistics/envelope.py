"""Compute-optimal size by the envelope of training curves (arXiv:2203.15556, approach 1).

It takes the best of all training curves at each compute, and needs curves whose learning rate was
cooled down at each point. Otherwise the exponents depend on the schedule; this module does not
correct for that.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from errors import DataError
from protocol.statistics.isoflop import (
    MIN_SIZES,
    Frontier,
    PowerLaw,
    bootstrap_interval,
    fit_power_law,
)
from protocol.statistics.scaling_law import Point, check_losses, select_points

Array = np.ndarray


def fit_envelope(
    points: Iterable[Point], *, n_budgets: int = 200, n_resamples: int = 200, seed: int = 0
) -> Frontier:
    """Fits the frontier by approach 1; its bootstrap resamples whole training curves.

    The points of one N are a training curve, which is interpolated. A budget is used if its best
    curve is neither the smallest nor the largest model there.

    Raises:
        DataError: if there are too few curves, or too few of them are ever the best.
    """
    used, points_dropped = select_points(points)
    check_losses(used)
    by_size = {size: [p for p in used if p.params == size] for size in {p.params for p in used}}
    curves = [
        _TrainingCurve.from_points(by_size[size])
        for size in sorted(by_size)
        if len(by_size[size]) > 1
    ]
    if len(curves) < MIN_SIZES:
        raise DataError(f"{len(curves)} curves of 2 points or more, must be {MIN_SIZES} or more")
    low = min(curve.compute[0] for curve in curves)
    high = max(curve.compute[-1] for curve in curves)
    grid = np.linspace(low, high, n_budgets)
    losses = np.stack([curve.loss_at(grid) for curve in curves])

    def fit_frontier(selected: Array) -> tuple[PowerLaw, PowerLaw] | None:
        table = losses[selected]
        best, finite = table.argmin(0), np.isfinite(table)
        ends = [finite.argmax(0), len(selected) - 1 - finite[::-1].argmax(0)]
        inner = np.isfinite(table.min(0)) & (best != ends[0]) & (best != ends[1])
        winners = selected[best[inner]]
        if len(set(winners)) < 3:
            return None
        sizes = np.array([curves[i].params for i in winners])
        tokens = np.exp([curves[i].tokens_at(x) for i, x in zip(winners, grid[inner], strict=True)])
        computes = np.exp(grid[inner])
        return fit_power_law(computes, sizes), fit_power_law(computes, tokens)

    laws = fit_frontier(np.arange(len(curves)))
    if laws is None:
        raise DataError("fewer than 3 curves are ever the best; train more sizes, or for longer")

    def resample_exponent(rng: np.random.Generator) -> float:
        resampled = fit_frontier(np.unique(rng.integers(0, len(curves), len(curves))))
        return math.nan if resampled is None else resampled[0].exponent

    interval = bootstrap_interval(resample_exponent, n_resamples, seed)
    return Frontier(*laws, interval, len(curves), points_dropped)


class _TrainingCurve(NamedTuple):
    params: float
    compute: Float[Array, " n"]  # Logarithms, increasing.
    tokens: Float[Array, " n"]  # Logarithms.
    loss: Float[Array, " n"]

    @classmethod
    def from_points(cls, points: Sequence[Point]) -> "_TrainingCurve":
        points = sorted(points, key=lambda p: p.compute)
        compute, tokens, loss = np.array([(p.compute, p.tokens, p.loss) for p in points]).T
        return cls(points[0].params, np.log(compute), np.log(tokens), loss)

    def loss_at(self, compute: Array) -> Array:
        return np.interp(compute, self.compute, self.loss, left=np.inf, right=np.inf)

    def tokens_at(self, compute: float) -> float:
        return float(np.interp(compute, self.compute, self.tokens))
