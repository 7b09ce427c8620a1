"""Compute-optimal size by isoFLOP curves (arXiv:2203.15556, approach 2).

A parabola in log N is fitted to the sizes of each budget, one point a size: the mean of its seeds.
Its errors are those of sizes about the parabola, since seeds share what is particular to a size. A
parabola is biased where alpha differs from beta or the sizes are not centered (arXiv:2603.22339):
`surface.py` fits the law itself beside it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from scipy import special

from errors import DataError
from protocol.statistics.hypothesis_tests import Difference, Interval
from protocol.statistics.scaling_law import MAX_EPOCHS, Numbers, Point, check_losses, select_points
from protocol.statistics.size_means import LackOfFit, SizeMeans, average_seeds, lack_of_fit

MIN_SIZES = 5  # Sizes that the parabola of a budget needs; it has three constants.
MIN_COMPARED_SIZES = 6  # Sizes that a comparison of minima needs.

Array = np.ndarray


class PowerLaw(NamedTuple):
    """The power law factor * C ** exponent."""

    factor: float
    exponent: float

    def predict(self, compute: float) -> float:
        """Returns the value of the law at `compute` FLOPs."""
        return self.factor * compute**self.exponent


class Frontier(NamedTuple):
    """The compute-optimal N and D as power laws of the compute."""

    params: PowerLaw
    tokens: PowerLaw
    exponent_interval: Interval  # 95 % of the exponent of N, by bootstrap.
    groups_used: int  # Number of curves (approach 1) or budgets (approach 2).
    points_dropped: int  # Points beyond 4 epochs.


class Minimum(NamedTuple):
    """The minimum of the parabola of one budget, in the loss and the logarithm of N."""

    budget: float
    params: float
    tokens: float
    loss: float
    # Standard error of the loss, from the scatter of sizes about the parabola.
    standard_error: float
    df: int
    # Interval of N by Fieller; None: the curvature is not significantly different from 0.
    params_interval: Interval | None
    # True: the parabola has no minimum inside the sizes trained, and this is the best point.
    is_at_edge: bool
    coefficients: tuple[float, float, float]  # loss = a + b x + c x^2, x = log(N / center)
    center_params: float
    misfit: LackOfFit
    size_range: Interval  # The smallest and the largest N that were trained.

    @property
    def is_off_center(self) -> bool:
        """Whether the minimum is outside the middle third of the sizes, in log N."""
        low, high = np.log(self.size_range)
        return not 1 / 3 <= (math.log(self.params) - low) / (high - low) <= 2 / 3

    def loss_at(self, params: Numbers) -> Numbers:
        """Returns the loss of the parabola at N parameters."""
        x = np.log(params / self.center_params)
        return self.coefficients[0] + self.coefficients[1] * x + self.coefficients[2] * x**2


def fit_minima(points: Iterable[Point]) -> list[Minimum]:
    """Fits a parabola to the points of each `Point.budget`; returns minima by rising budget.

    Raises:
        DataError: if no usable point remains, or a point has no budget.
    """
    used, points_dropped = select_points(points)
    if not used:
        raise DataError(
            f"no point remains: {points_dropped} are beyond {MAX_EPOCHS:g} epochs; train on more "
            "text"
        )
    check_losses(used)
    if min(point.budget for point in used) <= 0:
        raise DataError("isoFLOP points need the budget they were planned for; set Point.budget")
    means = average_seeds(used)
    return [_fit_parabola(b, means.at(b)) for b in np.unique(means.budgets).tolist()]


def fit_isoflop(
    points: Iterable[Point],
    *,
    n_resamples: int = 200,
    seed: int = 0,
    with_outside: bool = False,
) -> Frontier:
    """Fits the frontier by approach 2; its bootstrap resamples the scatter of sizes.

    Args:
        points: the runs; the seeds of a size count as one point.
        n_resamples: number of resamples.
        seed: seed of the resamples.
        with_outside: use the minimum of a parabola outside the sizes trained too. Otherwise only
            budgets are used whose minimum is inside.

    Raises:
        DataError: if fewer than 2 budgets have such a minimum.
    """
    used, points_dropped = select_points(points)
    minima = [m for m in fit_minima(used) if _has_minimum(m, with_outside)]
    if len(minima) < 2:
        n_budgets = len({point.budget for point in used})
        remedy = "larger or smaller sizes" if n_budgets > len(minima) else "at more budgets"
        raise DataError(
            f"{len(minima)} of {n_budgets} budgets have their minimum inside the sizes trained, a "
            f"frontier needs 2 or more; train {remedy}"
        )
    means = average_seeds(used)
    groups = [means.at(m.budget) for m in minima]
    squares = sum(
        (group.weights * (group.losses - m.loss_at(group.params)) ** 2).sum()
        for m, group in zip(minima, groups, strict=True)
    )
    scatter = math.sqrt(squares / sum(m.df for m in minima))

    def resample_exponent(rng: np.random.Generator) -> float:
        refits = []
        for m, group in zip(minima, groups, strict=True):
            noise = rng.normal(0, scatter, len(group.losses)) / np.sqrt(group.weights)
            losses = m.loss_at(group.params) + noise
            refits.append(_fit_parabola(m.budget, group._replace(losses=losses)))
        valid = [m for m in refits if _has_minimum(m, with_outside)]
        pairs = [_vertex(m, with_outside) for m in valid]
        return fit_power_law([m.budget for m in valid], [n for n, _ in pairs]).exponent

    computes = [m.budget for m in minima]
    vertices = [_vertex(m, with_outside) for m in minima]
    return Frontier(
        fit_power_law(computes, [n for n, _ in vertices]),
        fit_power_law(computes, [d for _, d in vertices]),
        bootstrap_interval(resample_exponent, n_resamples, seed),
        len(minima),
        points_dropped,
    )


class LossEstimate(Protocol):
    """A loss at an optimum: that of a parabola (`Minimum`) or of a surface (`SurfaceOptimum`)."""

    @property
    def loss(self) -> float:
        """The loss."""

    @property
    def standard_error(self) -> float:
        """Its standard error."""

    @property
    def df(self) -> int:
        """Degrees of freedom of the standard error."""


def minima_difference(a: LossEstimate, b: LossEstimate) -> Difference:
    """Compares the losses at two minima, with degrees of freedom as in `welch`."""
    u, v = a.standard_error**2, b.standard_error**2
    df = (u + v) ** 2 / (u**2 / a.df + v**2 / b.df) if u + v else float(min(a.df, b.df))
    low, high = min(a.df, b.df), a.df + b.df
    claim_df = low + (high - low) * ((df - low) / (high - low)) ** 2
    return Difference(
        np.asarray(a.loss - b.loss),
        np.asarray(math.sqrt(u + v)),
        np.asarray(df),
        np.asarray(claim_df),
    )


def _has_minimum(minimum: Minimum, with_outside: bool) -> bool:
    return minimum.coefficients[2] > 0 if with_outside else not minimum.is_at_edge


def _vertex(minimum: Minimum, with_outside: bool) -> tuple[float, float]:
    """Returns N and D at the vertex of a parabola, which may be outside the sizes trained.

    There D follows from N and the budget: C = k N D, with the k of the nearest size.
    """
    if not with_outside or not minimum.is_at_edge:
        return minimum.params, minimum.tokens
    _, b, c = minimum.coefficients
    params = minimum.center_params * math.exp(-b / (2 * c))
    return params, minimum.tokens * minimum.params / params


def _fit_parabola(budget: float, means: SizeMeans) -> Minimum:
    """Returns the minimum of the weighted parabola through the sizes of one budget.

    Raises:
        DataError: if there are too few sizes.
    """
    log_n, y, weights = np.log(means.params), means.losses, means.weights
    if (n_sizes := len({*means.params})) < MIN_SIZES:
        raise DataError(
            f"budget {budget:g} has {n_sizes} sizes, must have {MIN_SIZES} or more; train more "
            "sizes"
        )
    center, df = log_n.mean(), len(y) - 3
    x = log_n - center
    X = np.stack([np.ones_like(x), x, x**2], -1)
    inverse = np.linalg.inv(X.T @ (weights[:, None] * X))
    a, b, c = curve = inverse @ X.T @ (weights * y)
    variance = float((weights * (y - X @ curve) ** 2).sum()) / df
    inside = c > 0 and x.min() < -b / (2 * c) < x.max()
    best = -b / (2 * c) if inside else x[y.argmin()]
    basis = np.array([1.0, best, best**2])
    by_size = np.argsort(x)
    tokens = np.interp(best, x[by_size], np.log(means.tokens[by_size]))
    return Minimum(
        *(budget, float(np.exp(center + best)), float(np.exp(tokens)), float(basis @ curve)),
        float(np.sqrt(basis @ inverse @ basis * variance)),
        df,
        _fieller_interval(b, c, inverse * variance, df, center),
        is_at_edge=not inside,
        coefficients=(float(a), float(b), float(c)),
        center_params=float(np.exp(center)),
        misfit=lack_of_fit(variance, df, means),
        size_range=Interval(float(means.params.min()), float(means.params.max())),
    )


def _fieller_interval(
    b: float, c: float, covariance: Array, df: int, center: float
) -> Interval | None:
    """Returns the 95 % interval of exp(center - b / 2c) by Fieller (1954).

    It holds all x at which the slope b + 2 c x is not significantly different from 0.
    """
    t = special.stdtrit(df, 0.975) ** 2
    square = 4 * (c**2 - t * covariance[2, 2])
    linear = 4 * (b * c - t * covariance[1, 2])
    root = linear**2 - 4 * square * (b**2 - t * covariance[1, 1])
    if c <= 0 or square <= 0 or root < 0:
        return None
    ends = [(-linear + sign * math.sqrt(root)) / (2 * square) for sign in (-1, 1)]
    with np.errstate(over="ignore"):  # An end so far away is infinite.
        return Interval(*(float(np.exp(center + x)) for x in ends))


def fit_power_law(compute: Sequence[float] | Array, y: Sequence[float] | Array) -> PowerLaw:
    """Fits y = factor * compute ** exponent in logarithms; NaN of fewer than 2 values."""
    if len(compute) < 2:
        return PowerLaw(math.nan, math.nan)
    exponent, factor = np.polyfit(np.log(compute), np.log(y), 1).tolist()
    return PowerLaw(math.exp(factor), exponent)


def bootstrap_interval(
    statistic: Callable[[np.random.Generator], float], n_resamples: int, seed: int
) -> Interval:
    """Returns the 95 % interval of a statistic over resamples, of those that have a value."""
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng) for _ in range(n_resamples)])
    values = values[np.isfinite(values)]
    if not values.size:
        return Interval(math.nan, math.nan)
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return Interval(low, high)
