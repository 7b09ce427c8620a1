"""One point a size: the mean over the seeds of a model at a budget, and the scatter of its seeds.

Seeds of one size share what is particular to that size, such as its tuned learning rate and the
misfit of the curve. A fit that counts each seed as a point therefore takes its errors for
independent when they are not, and claims too much. All fits of curves and surfaces use the means.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from errors import DataError
from protocol.statistics.scaling_law import Point

Array = np.ndarray


class SizeMeans(NamedTuple):
    """The mean losses of models at budgets, in rising order of (budget, N, D)."""

    budgets: Float[Array, " k"]
    params: Float[Array, " k"]
    tokens: Float[Array, " k"]
    losses: Float[Array, " k"]
    n_runs: Float[Array, " k"]
    seed_variance: float  # Of one run about the mean of its size; NaN if no size has two runs.
    seed_df: int
    runs: tuple[tuple[float, ...], ...]  # Losses of the runs of each size.

    @property
    def weights(self) -> Float[Array, " k"]:
        """Weights of a fit, of mean 1: the number of runs of each size over the mean number."""
        return self.n_runs / self.n_runs.mean()

    def at(self, budget: float) -> "SizeMeans":
        """Returns the sizes of one budget, with the seeds' scatter of all of them."""
        rows = np.flatnonzero(self.budgets == budget)
        return self._replace(
            budgets=self.budgets[rows],
            params=self.params[rows],
            tokens=self.tokens[rows],
            losses=self.losses[rows],
            n_runs=self.n_runs[rows],
            runs=tuple(self.runs[i] for i in rows),
        )


class LackOfFit(NamedTuple):
    """The F test of the scatter of sizes about a curve against the scatter of seeds."""

    ratio: float  # Scatter of sizes about the curve over that which the seeds explain.
    p: float  # NaN: no size has two runs, so it cannot be tested.

    @property
    def is_significant(self) -> bool:
        """Whether sizes differ from the curve by more than their seeds explain."""
        return self.p < 0.05


def average_seeds(points: Iterable[Point]) -> SizeMeans:
    """Returns the mean over the points that have the same budget, N and D.

    Raises:
        DataError: if there is no point.
    """
    members: dict[tuple[float, float, float], list[float]] = {}
    for point in points:
        key = point.budget, point.params, point.tokens
        members.setdefault(key, []).append(point.loss)
    if not members:
        raise DataError("no point remains to be fitted; give points of at most 4 epochs")
    keys = sorted(members)
    runs = tuple(tuple(members[key]) for key in keys)
    means = np.array([np.mean(values) for values in runs])
    df = sum(len(values) - 1 for values in runs)
    squares = sum(((np.array(v) - m) ** 2).sum() for v, m in zip(runs, means, strict=True))
    budgets, params, tokens = np.array(keys, float).T
    counts = np.array([float(len(values)) for values in runs])
    variance = float(squares / df) if df else float("nan")
    return SizeMeans(budgets, params, tokens, means, counts, variance, df, runs)


def lack_of_fit(scatter: float, df: int, means: SizeMeans) -> LackOfFit:
    """Tests the scatter of sizes against that of their seeds.

    Args:
        scatter: the weighted mean square of the sizes about the curve, by `df`.
        df: sizes less constants of the curve.
        means: the sizes.
    """
    expected = means.seed_variance / means.n_runs.mean()
    if df < 1 or not means.seed_df or not expected > 0:
        return LackOfFit(float("nan"), float("nan"))
    ratio = scatter / expected
    return LackOfFit(float(ratio), float(special.fdtrc(df, means.seed_df, ratio)))
