"""Compute-optimal size without a law of the loss: envelope and isoFLOP curves (arXiv:2203.15556).

Approach 1 takes, at each compute, the best of all training curves; approach 2 fits a parabola in
log N to the runs of each budget. Both end in power laws, N = k C^a. Left out on purpose: reading
approach 1 off schedules that were not over: give it curves that were cooled down at each point, or
the exponents inherit the schedule.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from errors import DataError
from protocol.scaling import MOST_EPOCHS, Numbers, Point, kept
from protocol.statistics import Difference, Interval

SIZES = 5  # of a budget's parabola, which has three constants

Array = np.ndarray


class PowerLaw(NamedTuple):
    """factor * C ** exponent."""

    factor: float
    exponent: float

    def at(self, compute: float) -> float:
        return self.factor * compute**self.exponent


class Frontier(NamedTuple):
    """N and D of the least loss by compute, and the bootstrap's 95 % of the exponent of N."""

    params: PowerLaw
    tokens: PowerLaw
    exponent: Interval
    used: int  # curves or budgets
    left_out: int  # points beyond 4 epochs


class Minimum(NamedTuple):
    """Of the parabola of one budget, in the loss and the logarithm of N."""

    budget: float
    params: float
    tokens: float
    loss: float
    error: float  # of the loss: what scatters about the parabola, seeds and misfit together
    df: int
    interval: Interval | None  # of N, by Fieller; None: the curvature is not distinct from 0
    edge: bool  # the parabola has no minimum inside the sizes trained: this is but the best point
    curve: tuple[float, float, float]  # loss = a + b x + c x^2, x = log(N / centre)
    centre: float

    def loss_at(self, params: Numbers) -> Any:
        x = np.log(params / self.centre)
        return self.curve[0] + self.curve[1] * x + self.curve[2] * x**2


def minima(points: Iterable[Point]) -> list[Minimum]:
    """One for each `Point.budget`, by rising budget."""
    used, left_out = kept(points)
    budgets = sorted({point.budget for point in used})
    if not budgets:
        raise DataError(
            f"no point is left: {left_out} are beyond {MOST_EPOCHS:g} epochs; train on more text"
        )
    if budgets[0] <= 0:
        raise DataError("isoFLOP points need the budget they were planned for; set Point.budget")
    return [_parabola(b, [p for p in used if p.budget == b]) for b in budgets]


def isoflop(points: Iterable[Point], *, resamples: int = 200, seed: int = 0) -> Frontier:
    """Approach 2, from budgets whose minimum is inside; its bootstrap scatters about the curves."""
    used, left_out = kept(points)
    inside = [m for m in minima(used) if not m.edge]
    if len(inside) < 2:
        raise DataError(
            f"{len(inside)} budgets have their minimum inside the sizes trained, a frontier needs "
            "2 or more; train larger or smaller ones"
        )
    groups = [[p for p in used if p.budget == m.budget] for m in inside]
    pairs = [(m, p) for m, group in zip(inside, groups, strict=True) for p in group]
    rest = sum((p.loss - m.loss_at(p.params)) ** 2 for m, p in pairs)
    scatter = math.sqrt(rest / sum(m.df for m in inside))

    def exponent(rng: np.random.Generator) -> float:
        found = []
        for m, group in zip(inside, groups, strict=True):
            noise = rng.normal(0, scatter, len(group))
            again = [
                p._replace(loss=m.loss_at(p.params) + e) for p, e in zip(group, noise, strict=True)
            ]
            found.append(_parabola(m.budget, again))
        found = [m for m in found if not m.edge]
        return _power([m.budget for m in found], [m.params for m in found]).exponent

    computes = [m.budget for m in inside]
    return Frontier(
        _power(computes, [m.params for m in inside]),
        _power(computes, [m.tokens for m in inside]),
        _bootstrap(exponent, resamples, seed),
        len(inside),
        left_out,
    )


def envelope(
    points: Iterable[Point], *, budgets: int = 200, resamples: int = 200, seed: int = 0
) -> Frontier:
    """Approach 1: points of one N are a curve, read between them; curves are resampled.

    A budget counts where its best curve is neither the smallest nor the largest one.
    """
    used, left_out = kept(points)
    by_size = {size: [p for p in used if p.params == size] for size in {p.params for p in used}}
    curves = [_Curve.of(by_size[size]) for size in sorted(by_size) if len(by_size[size]) > 1]
    if len(curves) < SIZES:
        raise DataError(f"{len(curves)} curves of 2 points or more, must be {SIZES} or more")
    low = min(curve.compute[0] for curve in curves)
    high = max(curve.compute[-1] for curve in curves)
    grid = np.linspace(low, high, budgets)
    losses = np.stack([curve.losses(grid) for curve in curves])

    def frontier(chosen: Array) -> tuple[PowerLaw, PowerLaw] | None:
        table = losses[chosen]
        best = table.argmin(0)
        ends = [np.isfinite(table).argmax(0), len(chosen) - 1 - np.isfinite(table[::-1]).argmax(0)]
        inner = np.isfinite(table.min(0)) & (best != ends[0]) & (best != ends[1])
        winners = chosen[best[inner]]
        if len(set(winners)) < 3:
            return None
        sizes = np.array([curves[i].params for i in winners])
        tokens = np.exp([curves[i].tokens_at(x) for i, x in zip(winners, grid[inner], strict=True)])
        computes = np.exp(grid[inner])
        return _power(computes, sizes), _power(computes, tokens)

    found = frontier(np.arange(len(curves)))
    if found is None:
        raise DataError("fewer than 3 curves are ever the best; train more sizes, or for longer")

    def exponent(rng: np.random.Generator) -> float:
        again = frontier(np.unique(rng.integers(0, len(curves), len(curves))))
        return math.nan if again is None else again[0].exponent

    spread = _bootstrap(exponent, resamples, seed)
    return Frontier(*found, spread, len(curves), left_out)


def apart(a: Minimum, b: Minimum) -> Difference:
    """Losses at two minima, as Welch would: what `Difference` says holds for it."""
    u, v = a.error**2, b.error**2
    df = (u + v) ** 2 / (u**2 / a.df + v**2 / b.df) if u + v else float(min(a.df, b.df))
    low, high = min(a.df, b.df), a.df + b.df
    claim = low + (high - low) * ((df - low) / (high - low)) ** 2
    mean, error = a.loss - b.loss, math.sqrt(u + v)
    rest = np.asarray(error), np.asarray(df), np.asarray(claim)
    return Difference(np.asarray(mean), *rest)


class _Curve(NamedTuple):
    params: float
    compute: Float[Array, " n"]  # logarithms, rising
    tokens: Float[Array, " n"]  # logarithms
    loss: Float[Array, " n"]

    @classmethod
    def of(cls, points: Sequence[Point]) -> "_Curve":
        points = sorted(points, key=lambda p: p.compute)
        compute, tokens, loss = np.array([(p.compute, p.tokens, p.loss) for p in points]).T
        return cls(points[0].params, np.log(compute), np.log(tokens), loss)

    def losses(self, compute: Array) -> Array:
        return np.interp(compute, self.compute, self.loss, left=np.inf, right=np.inf)

    def tokens_at(self, compute: float) -> float:
        return float(np.interp(compute, self.compute, self.tokens))


def _parabola(budget: float, points: Sequence[Point]) -> Minimum:
    sizes = {point.params for point in points}
    if len(sizes) < SIZES:
        raise DataError(f"budget {budget:g} has {len(sizes)} sizes, must be {SIZES} or more")
    log_n = np.log([point.params for point in points])
    centre, df = log_n.mean(), len(points) - 3
    x, y = log_n - centre, np.array([point.loss for point in points])
    X = np.stack([np.ones_like(x), x, x**2], -1)
    inverse = np.linalg.inv(X.T @ X)
    a, b, c = curve = inverse @ X.T @ y
    variance = ((y - X @ curve) ** 2).sum() / df
    inside = c > 0 and x.min() < -b / (2 * c) < x.max()
    best = -b / (2 * c) if inside else x[y.argmin()]
    at = np.array([1.0, best, best**2])
    by_size = np.argsort(x)
    tokens = np.interp(best, x[by_size], np.log([points[i].tokens for i in by_size]))
    return Minimum(
        *(budget, float(np.exp(centre + best)), float(np.exp(tokens)), float(at @ curve)),
        float(np.sqrt(at @ inverse @ at * variance)),
        df,
        _fieller(b, c, inverse * variance, df, centre),
        edge=not inside,
        curve=(float(a), float(b), float(c)),
        centre=float(np.exp(centre)),
    )


def _fieller(b: float, c: float, covariance: Array, df: int, centre: float) -> Interval | None:
    """95 % of exp(centre - b / 2c): all x at which the slope b + 2 c x may be 0 (Fieller 1954)."""
    t = special.stdtrit(df, 0.975) ** 2
    square = 4 * (c**2 - t * covariance[2, 2])
    linear = 4 * (b * c - t * covariance[1, 2])
    root = linear**2 - 4 * square * (b**2 - t * covariance[1, 1])
    if c <= 0 or square <= 0 or root < 0:
        return None
    ends = [(-linear + sign * math.sqrt(root)) / (2 * square) for sign in (-1, 1)]
    return Interval(*(float(np.exp(centre + x)) for x in ends))


def _power(compute: Sequence[float] | Array, y: Sequence[float] | Array) -> PowerLaw:
    if len(compute) < 2:
        return PowerLaw(math.nan, math.nan)
    exponent, factor = np.polyfit(np.log(compute), np.log(y), 1).tolist()
    return PowerLaw(math.exp(factor), exponent)


def _bootstrap(
    value: Callable[[np.random.Generator], float], resamples: int, seed: int
) -> Interval:
    rng = np.random.default_rng(seed)
    found = np.array([value(rng) for _ in range(resamples)])
    found = found[np.isfinite(found)]
    if not found.size:
        return Interval(math.nan, math.nan)
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    return Interval(low, high)
