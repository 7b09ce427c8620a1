"""Compute-optimal size without a law of the loss: envelope and isoFLOP curves (arXiv:2203.15556).

Approach 1 takes the best of all training curves at each compute. Approach 2 fits a parabola in
log N to the runs of each budget. Both yield power laws, N = k C^a. Approach 1 needs curves whose
learning rate was cooled down at each point. Otherwise the exponents depend on the schedule; this
module does not correct for that.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from errors import DataError
from protocol.statistics.hypothesis_tests import Difference, Interval
from protocol.statistics.scaling_law import MAX_EPOCHS, Numbers, Point, select_points

MIN_SIZES = 5  # Sizes that the parabola of a budget needs; it has three constants.

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
    # Standard error of the loss, from the scatter about the parabola: seeds and misfit together.
    standard_error: float
    df: int
    # Interval of N by Fieller; None: the curvature is not significantly different from 0.
    params_interval: Interval | None
    # True: the parabola has no minimum inside the sizes trained, and this is the best point.
    is_at_edge: bool
    coefficients: tuple[float, float, float]  # loss = a + b x + c x^2, x = log(N / center)
    center_params: float

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
    budgets = sorted({point.budget for point in used})
    if not budgets:
        raise DataError(
            f"no point remains: {points_dropped} are beyond {MAX_EPOCHS:g} epochs; train on more "
            "text"
        )
    if budgets[0] <= 0:
        raise DataError("isoFLOP points need the budget they were planned for; set Point.budget")
    return [_fit_parabola(b, [p for p in used if p.budget == b]) for b in budgets]


def fit_isoflop(points: Iterable[Point], *, n_resamples: int = 200, seed: int = 0) -> Frontier:
    """Fits the frontier by approach 2; its bootstrap resamples the scatter about the parabolas.

    Only budgets whose minimum is inside the sizes trained are used.

    Raises:
        DataError: if fewer than 2 budgets have such a minimum.
    """
    used, points_dropped = select_points(points)
    minima = [m for m in fit_minima(used) if not m.is_at_edge]
    if len(minima) < 2:
        raise DataError(
            f"{len(minima)} budgets have their minimum inside the sizes trained, a frontier needs "
            "2 or more; train larger or smaller ones"
        )
    groups = [[p for p in used if p.budget == m.budget] for m in minima]
    pairs = [(m, p) for m, group in zip(minima, groups, strict=True) for p in group]
    squares = sum((p.loss - m.loss_at(p.params)) ** 2 for m, p in pairs)
    scatter = math.sqrt(squares / sum(m.df for m in minima))

    def resample_exponent(rng: np.random.Generator) -> float:
        refits = []
        for m, group in zip(minima, groups, strict=True):
            noise = rng.normal(0, scatter, len(group))
            resampled = [
                p._replace(loss=m.loss_at(p.params) + e) for p, e in zip(group, noise, strict=True)
            ]
            refits.append(_fit_parabola(m.budget, resampled))
        inside = [m for m in refits if not m.is_at_edge]
        return _fit_power_law([m.budget for m in inside], [m.params for m in inside]).exponent

    computes = [m.budget for m in minima]
    return Frontier(
        _fit_power_law(computes, [m.params for m in minima]),
        _fit_power_law(computes, [m.tokens for m in minima]),
        _bootstrap(resample_exponent, n_resamples, seed),
        len(minima),
        points_dropped,
    )


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
        return _fit_power_law(computes, sizes), _fit_power_law(computes, tokens)

    laws = fit_frontier(np.arange(len(curves)))
    if laws is None:
        raise DataError("fewer than 3 curves are ever the best; train more sizes, or for longer")

    def resample_exponent(rng: np.random.Generator) -> float:
        resampled = fit_frontier(np.unique(rng.integers(0, len(curves), len(curves))))
        return math.nan if resampled is None else resampled[0].exponent

    interval = _bootstrap(resample_exponent, n_resamples, seed)
    return Frontier(*laws, interval, len(curves), points_dropped)


def minima_difference(a: Minimum, b: Minimum) -> Difference:
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


def _fit_parabola(budget: float, points: Sequence[Point]) -> Minimum:
    sizes = {point.params for point in points}
    if len(sizes) < MIN_SIZES:
        raise DataError(f"budget {budget:g} has {len(sizes)} sizes, must be {MIN_SIZES} or more")
    log_n = np.log([point.params for point in points])
    center, df = log_n.mean(), len(points) - 3
    x, y = log_n - center, np.array([point.loss for point in points])
    X = np.stack([np.ones_like(x), x, x**2], -1)
    inverse = np.linalg.inv(X.T @ X)
    a, b, c = curve = inverse @ X.T @ y
    variance = ((y - X @ curve) ** 2).sum() / df
    inside = c > 0 and x.min() < -b / (2 * c) < x.max()
    best = -b / (2 * c) if inside else x[y.argmin()]
    basis = np.array([1.0, best, best**2])
    by_size = np.argsort(x)
    tokens = np.interp(best, x[by_size], np.log([points[i].tokens for i in by_size]))
    return Minimum(
        *(budget, float(np.exp(center + best)), float(np.exp(tokens)), float(basis @ curve)),
        float(np.sqrt(basis @ inverse @ basis * variance)),
        df,
        _fieller_interval(b, c, inverse * variance, df, center),
        is_at_edge=not inside,
        coefficients=(float(a), float(b), float(c)),
        center_params=float(np.exp(center)),
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
    return Interval(*(float(np.exp(center + x)) for x in ends))


def _fit_power_law(compute: Sequence[float] | Array, y: Sequence[float] | Array) -> PowerLaw:
    if len(compute) < 2:
        return PowerLaw(math.nan, math.nan)
    exponent, factor = np.polyfit(np.log(compute), np.log(y), 1).tolist()
    return PowerLaw(math.exp(factor), exponent)


def _bootstrap(
    statistic: Callable[[np.random.Generator], float], n_resamples: int, seed: int
) -> Interval:
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng) for _ in range(n_resamples)])
    values = values[np.isfinite(values)]
    if not values.size:
        return Interval(math.nan, math.nan)
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return Interval(low, high)
