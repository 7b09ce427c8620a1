"""The parametric scaling law L(N, D) = E + A / N^alpha + B / D^beta (arXiv:2203.15556, approach 3).

Huber's loss of log L, delta 1e-3, is summed and divided by delta^2 and the logarithms of N and D
are centred. Averaged and as it stands it is so small (1e-6) that L-BFGS-B takes it for converged
after two steps, wherever it began; arXiv:2404.10102 shows what that did to the published constants.

What counts as N, with or without embedding, is the caller's to say, once for all points of a fit.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from errors import DataError

MOST_EPOCHS = 4.0  # repeated beyond that, tokens are worth less than new ones (arXiv:2305.16264)
DELTA = 1e-3
FEWEST = 8  # points for five constants
NARROWEST = 20.0  # spread of (log N, log D) along their main direction over that across it
STARTS = 2  # of the optimizer on each resample: the best ends of all points that are apart
APART = 0.05  # in an exponent: ends of the optimizer that are optima of their own
EXPONENTS = (0.0, 5.0)  # bounds

Array = np.ndarray
Numbers = float | Float[Array, "..."]


class Point(NamedTuple):
    """One run at its end, or one moment of it (`frontier.envelope`)."""

    params: float  # N
    tokens: float  # D
    loss: float
    flops: float = 0.0  # of its training, counted exactly; 0: 6 N D
    epochs: float = 1.0
    budget: float = 0.0  # that it was planned for: what groups the points of an isoFLOP curve

    @property
    def compute(self) -> float:
        return self.flops or 6 * self.params * self.tokens


class Law(NamedTuple):
    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, params: Numbers, tokens: Numbers) -> Any:
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta


class Fit(NamedTuple):
    """`low` and `high` bound each constant by itself (95 %, bootstrap over points).

    Each resample is fitted from the best `STARTS` optima of all points, so that it may end in
    another of them than the law did; the interval is then as wide as that.
    """

    law: Law
    low: Law
    high: Law
    used: int
    left_out: int  # beyond 4 epochs
    resampled: tuple[Law, ...]

    def interval(self, value: Callable[[Law], float], level: float = 0.95) -> tuple[float, float]:
        """Of anything that follows from the law, as `lambda law: optimum(law, 1e20).params`."""
        found = [value(law) for law in self.resampled]
        low = np.quantile(found, (1 - level) / 2, method="lower")  # infinite ones have no mean
        return float(low), float(np.quantile(found, (1 + level) / 2, method="higher"))


class Optimum(NamedTuple):
    params: float
    tokens: float
    loss: float


def kept(points: Iterable[Point]) -> tuple[list[Point], int]:
    """Points that a fit may use, and how many it may not; a value that is none is an error."""
    points = list(points)
    for point in points:
        sound = all(map(math.isfinite, point)) and min(point.flops, point.budget) >= 0
        if not sound or min(point.params, point.tokens, point.loss, point.epochs) <= 0:
            raise DataError(f"{point} must have finite values above 0; leave diverged runs out")
    used = [point for point in points if point.epochs <= MOST_EPOCHS]
    return used, len(points) - len(used)


def fitted(points: Iterable[Point], *, resamples: int = 200, seed: int = 0) -> Fit:
    """The law of the points, with its bootstrap; few points make its intervals too narrow."""
    used, left_out = kept(points)
    distinct = [len({getattr(point, name) for point in used}) for name in ("params", "tokens")]
    if len(used) < FEWEST or min(distinct) < 3:
        raise DataError(
            f"{len(used)} points of {distinct[0]} sizes and {distinct[1]} token counts do not hold "
            f"five constants; give {FEWEST} or more, of 3 or more each"
        )
    n, d = (np.log([getattr(point, name) for point in used]) for name in ("params", "tokens"))
    data = _Data(n - n.mean(), d - d.mean(), np.log([point.loss for point in used]))
    _spanning(data)
    ones = np.ones(len(used))
    ends = _optima([_minimum(start, data, ones, 1e-5) for start in _starts(data, n, d)])
    ends = sorted((_minimum(end.x, data, ones) for end in ends), key=lambda r: r.fun)
    law = _law(ends[0].x, n.mean(), d.mean())
    _inside(law)
    rng, again = np.random.default_rng(seed), []
    for _ in range(resamples):
        weights = rng.multinomial(len(used), ones / len(used)).astype(float)
        found = min((_minimum(end.x, data, weights) for end in ends), key=lambda r: r.fun)
        again.append(_law(found.x, n.mean(), d.mean()))
    low, high = np.quantile(again or [law], [0.025, 0.975], axis=0).tolist()
    return Fit(law, Law(*low), Law(*high), len(used), left_out, tuple(again))


def optimum(law: Law, budget: float) -> Optimum:
    """The N and D of least loss at 6 N D = budget; of what has no worth (exponent 0) nothing."""
    if not law.beta:
        return Optimum(math.inf, 0.0, law.E + law.B + law.A * (law.alpha == 0))
    if not law.alpha:
        return Optimum(0.0, math.inf, law.E + law.A)
    ratio = law.alpha * law.A / (law.beta * law.B)
    total = law.alpha + law.beta
    params = ratio ** (1 / total) * (budget / 6) ** (law.beta / total)
    tokens = budget / (6 * params)
    return Optimum(params, tokens, law.loss(params, tokens))


def exact_optimum(law: Law, budget: float, per_token: Callable[[float], float]) -> Optimum:
    """The same where training a token of a model with N parameters takes `per_token(N)` FLOPs."""
    first = optimum(law, budget)
    if not 0 < first.params < math.inf:
        return first
    near = math.log(first.params)

    def loss(log_params: float) -> float:
        params = math.exp(log_params)
        tokens = budget / per_token(params)
        return law.loss(params, tokens)

    bounds = (near - math.log(1e3), near + math.log(1e3))
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    params = math.exp(found.x)
    return Optimum(params, budget / per_token(params), float(found.fun))


def counted(points: Sequence[Point]) -> Callable[[float], float]:
    """Training FLOPs per token by N, through the exact counts of points; 6 N scaled outside."""
    by_size = {p.params: p.compute / p.tokens / (6 * p.params) for p in points}
    sizes = np.array(sorted(by_size))
    ratios = np.array([by_size[size] for size in sizes])
    return lambda params: 6 * params * float(np.interp(np.log(params), np.log(sizes), ratios))


class _Data(NamedTuple):
    """Logarithms: of N and D around their means, and of L."""

    n: Array
    d: Array
    loss: Array


def objective(
    theta: Float[Array, "5"], data: _Data, weights: Float[Array, " n"]
) -> tuple[float, Array]:
    """Summed Huber loss over delta^2 and its gradient; theta = (log A', log B', log E, ..)."""
    p, q, e, alpha, beta = theta.tolist()
    parts = np.stack([p - alpha * data.n, q - beta * data.d, np.full_like(data.n, e)])
    top = parts.max(0)
    parts = np.exp(parts - top)
    total = parts.sum(0)
    rest = np.log(total) + top - data.loss
    cut = np.minimum(np.maximum(rest, -DELTA), DELTA)
    a, b, c = parts * (weights * cut / (DELTA**2 * total))
    gradient = np.array([a.sum(), b.sum(), c.sum(), -(a * data.n).sum(), -(b * data.d).sum()])
    return float((weights * cut * (rest - cut / 2)).sum()) / DELTA**2, gradient


def _minimum(
    start: Array, data: _Data, weights: Array, tolerance: float = 1e-12
) -> optimize.OptimizeResult:
    return optimize.minimize(
        objective,
        start,
        (data, weights),
        method="L-BFGS-B",
        jac=True,
        bounds=[(None, None)] * 3 + [EXPONENTS] * 2,
        options={"maxiter": 2000, "maxfun": 4000, "ftol": tolerance, "gtol": 1e-7},
    )


def _spanning(data: _Data) -> None:
    """DataError for points along a line, whose loss is one power of their common size: they say
    what N and D are worth together, and of their shares nothing."""
    wide, narrow = np.linalg.svd(np.stack([data.n, data.d], -1), compute_uv=False)
    if narrow * NARROWEST < wide:
        ratio = f"{wide / narrow:.3g}" if narrow > 1e-9 * wide else "infinitely many"
        raise DataError(
            f"log N and log D of the points spread {ratio} times more along a line than across it, "
            f"must be at most {NARROWEST:g}: a ladder as D = 20 N does not tell N from D; add "
            "points off it, some sizes at several token counts"
        )


def _inside(law: Law) -> None:
    """DataError for an exponent at a bound of the optimizer."""
    for name in ("alpha", "beta"):
        value = law._asdict()[name]
        if not EXPONENTS[0] + 1e-6 < value < EXPONENTS[1] - 1e-6:
            what = "sizes" if name == "alpha" else "token counts"
            raise DataError(
                f"{name} of the fit is {value:g}, at the bound of {EXPONENTS[0]:g} to "
                f"{EXPONENTS[1]:g}: the points do not hold it; add {what} over a wider range"
            )


def _optima(ends: list[optimize.OptimizeResult]) -> list[optimize.OptimizeResult]:
    """The best of all ends, and the best that are other optima."""
    found: list[optimize.OptimizeResult] = []
    for end in sorted(ends, key=lambda r: r.fun):
        if all(np.abs(end.x[3:] - other.x[3:]).max() > APART for other in found):
            found.append(end)
    return found[:STARTS]


def _starts(data: _Data, n: Array, d: Array) -> list[Array]:
    """The paper's grid, and of it the best for each pair of exponents."""
    exponents, logs = (0.0, 0.5, 1.0, 1.5, 2.0), np.arange(0.0, 26.0, 5.0)
    levels, found = np.arange(-1.0, 1.1, 0.5), []
    for alpha in exponents:
        for beta in exponents:
            p, q = logs - alpha * n.mean(), logs - beta * d.mean()
            grid = np.stack(np.meshgrid(p, q, levels), -1).reshape(-1, 3)
            parts = (
                grid[:, :1] - alpha * data.n,
                grid[:, 1:2] - beta * data.d,
                np.broadcast_to(grid[:, 2:], (len(grid), data.n.size)),
            )
            rest = np.logaddexp(np.logaddexp(*parts[:2]), parts[2]) - data.loss
            best = special.huber(DELTA, rest).sum(-1).argmin()
            found.append(np.array([*grid[best], alpha, beta]))
    return found


def _law(theta: Array, n: float, d: float) -> Law:
    p, q, e, alpha, beta = theta.tolist()
    return Law(math.exp(e), math.exp(p + alpha * n), alpha, math.exp(q + beta * d), beta)
