"""One point a size: the mean over the seeds of a model at a budget, and the scatter of its seeds.

Seeds of one size share what is particular to that size, such as its tuned learning rate and the
misfit of the curve. A fit that counts each seed as a point therefore takes its errors for
independent when they are not, and claims too much. All fits of curves and surfaces use the means.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from errors import DataError
from protocol.statistics.scaling_law import Point, run_indices

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
    # 1: the points lie above the law by a gap, because the cooldown of their runs was to come.
    gaps: Float[Array, " k"]
    clusters: Int[Array, " k"]  # Sizes that share a run have one number, from 0 on.

    @property
    def is_clustered(self) -> bool:
        """Whether some sizes share a run, so that their errors are not independent."""
        return len(np.unique(self.clusters)) < len(self.clusters)

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
            gaps=self.gaps[rows],
            clusters=self.clusters[rows],
            runs=tuple(self.runs[i] for i in rows),
        )


class LackOfFit(NamedTuple):
    """The F test of the scatter of sizes about a curve against the scatter of seeds."""

    ratio: float  # Scatter of sizes about the curve over that which the seeds explain.
    p: float  # NaN: no size has two runs, or sizes share runs, so that it cannot be tested.

    @property
    def is_significant(self) -> bool:
        """Whether sizes differ from the curve by more than their seeds explain."""
        return self.p < 0.05


def average_seeds(points: Iterable[Point]) -> SizeMeans:
    """Returns the mean over the points that have the same budget, N, D and gap.

    Raises:
        DataError: if there is no point.
    """
    members: dict[tuple[float, ...], list[float]] = {}
    numbers: dict[tuple[float, ...], list[int]] = {}
    points = list(points)
    for point, number in zip(points, run_indices(points), strict=True):
        key = point.budget, point.params, point.tokens, point.before_cooldown
        members.setdefault(key, []).append(point.loss)
        numbers.setdefault(key, []).append(int(number))
    if not members:
        raise DataError("no point remains to be fitted; give points of at most 4 epochs")
    keys = sorted(members)
    runs = tuple(tuple(members[key]) for key in keys)
    means = np.array([np.mean(values) for values in runs])
    df = sum(len(values) - 1 for values in runs)
    squares = sum(((np.array(v) - m) ** 2).sum() for v, m in zip(runs, means, strict=True))
    budgets, params, tokens, gaps = np.array(keys, float).T
    clusters = _join_runs([numbers[key] for key in keys])
    counts = np.array([float(len(values)) for values in runs])
    variance = float(squares / df) if df else float("nan")
    return SizeMeans(
        *(budgets, params, tokens, means, counts, variance, df, runs), gaps=gaps, clusters=clusters
    )


def _join_runs(runs: Sequence[Sequence[int]]) -> Int[Array, " k"]:
    """Returns the number of the cluster of each size: sizes are joined where they share a run."""
    size_of: dict[int, int] = {}
    parents = list(range(len(runs)))

    def find_root(size: int) -> int:
        while parents[size] != size:
            size = parents[size]
        return size

    for size, of_size in enumerate(runs):
        for run in of_size:
            parents[find_root(size)] = find_root(size_of.setdefault(run, size))
    roots = [find_root(size) for size in range(len(runs))]
    return np.unique(roots, return_inverse=True)[1]


def lack_of_fit(scatter: float, df: int, means: SizeMeans) -> LackOfFit:
    """Tests the scatter of sizes against that of their seeds.

    Args:
        scatter: the weighted mean square of the sizes about the curve, by `df`.
        df: sizes less constants of the curve.
        means: the sizes.
    """
    expected = means.seed_variance / means.n_runs.mean()
    if df < 1 or not means.seed_df or not expected > 0 or means.is_clustered:
        return LackOfFit(float("nan"), float("nan"))
    ratio = scatter / expected
    return LackOfFit(float(ratio), float(special.fdtrc(df, means.seed_df, ratio)))
