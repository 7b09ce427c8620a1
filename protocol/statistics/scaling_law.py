"""The parametric scaling law L(N, D) = E + A / N^alpha + B / D^beta (arXiv:2203.15556, approach 3).

The objective is Huber's loss of log L with delta 1e-3, summed and divided by delta^2. The
logarithms of N and D are centered. The averaged loss without this scaling is so small (1e-6) that
L-BFGS-B stops after two steps at any starting point. arXiv:2404.10102 shows how that changed the
published constants.

The caller decides whether N includes the embedding. All points of a fit must follow one rule.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special

from errors import DataError

MAX_EPOCHS = 4.0  # Repeated tokens are worth less than new ones beyond it (arXiv:2305.16264).
HUBER_DELTA = 1e-3
MIN_POINTS = 8  # Points that a fit of five constants needs.
MAX_SPREAD_RATIO = 20.0  # Limit of the spread of (log N, log D) along its main axis over across it.
N_STARTS = 2  # Distinct optima of all points from which the fit of each resample starts.
MIN_EXPONENT_GAP = 0.05  # Difference in an exponent from which two optima count as distinct.
MIN_EXPONENT = 0.01  # Below it, a power of N or D is a constant over the sizes of any study.
EXPONENT_BOUNDS = (0.0, 5.0)

Array = np.ndarray
Numbers = TypeVar("Numbers", float, Array)


class Point(NamedTuple):
    """One run at its end, or at one step of its training (`isoflop.fit_envelope`)."""

    params: float  # N
    tokens: float  # D
    loss: float
    training_flops: float = 0.0  # Exact training FLOPs; 0: 6 N D.
    epochs: float = 1.0
    budget: float = 0.0  # Planned training FLOPs; points of one budget form an isoFLOP curve.
    run: int = 0  # Number of the run; points of one run are not independent. 0: a run of its own.
    # 1: a checkpoint before the cooldown of its run, whose loss lies above the law by a gap.
    before_cooldown: int = 0

    @property
    def compute(self) -> float:
        """The training FLOPs, exact if counted, else 6 N D."""
        return self.training_flops or 6 * self.params * self.tokens


class ScalingLaw(NamedTuple):
    """The constants of L(N, D) = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, params: Numbers, tokens: Numbers) -> Numbers:
        """Returns the loss that the law predicts at N parameters and D tokens."""
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta


class ScalingFit(NamedTuple):
    """A fitted law; `low` and `high` bound each constant on its own (95 %, bootstrap over points).

    Each resample is fitted from the best `N_STARTS` optima of all points. It may therefore end at
    another optimum than the law did, and the interval is then wider.
    """

    law: ScalingLaw
    low: ScalingLaw
    high: ScalingLaw
    points_used: int
    points_dropped: int  # Points beyond 4 epochs.
    bootstrap_laws: tuple[ScalingLaw, ...]

    def interval(
        self, value: Callable[[ScalingLaw], float], level: float = 0.95
    ) -> tuple[float, float]:
        """Returns the interval of a function of the law, such as its optimum at a budget."""
        values = [value(law) for law in self.bootstrap_laws]
        # The methods do not interpolate, because values may be infinite.
        low = np.quantile(values, (1 - level) / 2, method="lower")
        return float(low), float(np.quantile(values, (1 + level) / 2, method="higher"))


class Optimum(NamedTuple):
    """The compute-optimal N and D of a budget, with the loss there."""

    params: float
    tokens: float
    loss: float


def select_points(points: Iterable[Point]) -> tuple[list[Point], int]:
    """Returns the points of at most 4 epochs, and the number of the other points.

    Raises:
        DataError: if a value of a point is not finite, or not above 0.
    """
    points = list(points)
    for point in points:
        is_valid = all(map(math.isfinite, point)) and min(point.training_flops, point.budget) >= 0
        if not is_valid or min(point.params, point.tokens, point.loss, point.epochs) <= 0:
            raise DataError(f"{point} must have finite values above 0; exclude diverged runs")
    used = [point for point in points if point.epochs <= MAX_EPOCHS]
    return used, len(points) - len(used)


def fit_law(points: Iterable[Point], *, n_resamples: int = 200, seed: int = 0) -> ScalingFit:
    """Fits the law to the points and bootstraps it; with few points the intervals are too narrow.

    The bootstrap resamples runs, each with all of its points. Points before the cooldown of their
    run are left out, because the law has no gap.

    Raises:
        DataError: if the points do not determine the five constants.
    """
    used, points_dropped = select_points(p for p in points if not p.before_cooldown)
    distinct = [len({getattr(point, name) for point in used}) for name in ("params", "tokens")]
    if len(used) < MIN_POINTS or min(distinct) < 3:
        raise DataError(
            f"{len(used)} points of {distinct[0]} sizes and {distinct[1]} token counts do not "
            f"determine five constants; give {MIN_POINTS} points or more, of 3 sizes and 3 token "
            "counts or more"
        )
    check_losses(used)
    check_run_count(int(run_indices(used).max()) + 1)
    n, d = (np.log([getattr(point, name) for point in used]) for name in ("params", "tokens"))
    data = _LogData(n - n.mean(), d - d.mean(), np.log([point.loss for point in used]))
    check_spread(data.n, data.d)
    ones = np.ones(len(used))
    optima = _distinct_optima(
        [_minimize(start, data, ones, 1e-5) for start in _starting_points(data, n, d)]
    )
    optima = sorted((_minimize(o.x, data, ones) for o in optima), key=lambda r: r.fun)
    law = _law_from_theta(optima[0].x, n.mean(), d.mean())
    check_law(law, EXPONENT_BOUNDS[1])
    rng, laws = np.random.default_rng(seed), []
    runs = run_indices(used)
    shares = np.full(runs.max() + 1, 1 / (runs.max() + 1))
    for _ in range(n_resamples):
        weights = rng.multinomial(len(shares), shares).astype(float)[runs]
        best = min((_minimize(o.x, data, weights) for o in optima), key=lambda r: r.fun)
        laws.append(_law_from_theta(best.x, n.mean(), d.mean()))
    low, high = np.quantile(laws or [law], [0.025, 0.975], axis=0).tolist()
    bounds = ScalingLaw(*low), ScalingLaw(*high)
    return ScalingFit(law, *bounds, len(used), points_dropped, tuple(laws))


def check_run_count(n_runs: int) -> None:
    """Refuses points of few runs, whose errors are not independent: a bootstrap has no width.

    Raises:
        DataError: if there are fewer runs than points that a fit needs.
    """
    if n_runs < MIN_POINTS:
        raise DataError(
            f"the points are of {n_runs} independent runs, which do not give intervals of five "
            f"constants; give points of {MIN_POINTS} runs or more"
        )


def run_indices(points: Sequence[Point]) -> Int[np.ndarray, " n"]:
    """Returns the index of the run of each point, from 0 on; a point of run 0 is one of its own."""
    keys = [(point.run, 0 if point.run else i) for i, point in enumerate(points)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def find_optimum(law: ScalingLaw, budget: float) -> Optimum:
    """Returns the N and D of the least loss at 6 N D = budget.

    Where A or alpha is 0, larger models do not lower the loss, so that the optimal N is 0; where
    B or beta is 0, more tokens do not, so that the optimal D is.
    """
    if not (law.beta and law.B):
        loss = law.E + (0.0 if law.alpha else law.A) + (0.0 if law.beta else law.B)
        return Optimum(math.inf, 0.0, loss)
    if not (law.alpha and law.A):
        return Optimum(0.0, math.inf, law.E + (0.0 if law.alpha else law.A))
    ratio = law.alpha * law.A / (law.beta * law.B)
    total = law.alpha + law.beta
    params = ratio ** (1 / total) * (budget / 6) ** (law.beta / total)
    tokens = budget / (6 * params)
    return Optimum(params, tokens, law.loss(params, tokens))


class _LogData(NamedTuple):
    """The logarithms of N and D, centered, and the logarithm of L."""

    n: Array
    d: Array
    loss: Array


def huber_objective(
    theta: Float[Array, "5"], data: _LogData, weights: Float[Array, " n"]
) -> tuple[float, Array]:
    """Returns the summed Huber loss over delta^2, and its gradient.

    theta is (log A', log B', log E, alpha, beta), where A' and B' belong to the centered N and D.
    """
    p, q, e, alpha, beta = theta.tolist()
    parts = np.stack([p - alpha * data.n, q - beta * data.d, np.full_like(data.n, e)])
    top = parts.max(0)
    parts = np.exp(parts - top)
    total = parts.sum(0)
    residual = np.log(total) + top - data.loss
    clipped = np.minimum(np.maximum(residual, -HUBER_DELTA), HUBER_DELTA)
    a, b, c = parts * (weights * clipped / (HUBER_DELTA**2 * total))
    gradient = np.array([a.sum(), b.sum(), c.sum(), -(a * data.n).sum(), -(b * data.d).sum()])
    value = float((weights * clipped * (residual - clipped / 2)).sum())
    return value / HUBER_DELTA**2, gradient


def _minimize(
    start: Array, data: _LogData, weights: Array, tolerance: float = 1e-12
) -> optimize.OptimizeResult:
    return optimize.minimize(
        huber_objective,
        start,
        (data, weights),
        method="L-BFGS-B",
        jac=True,
        bounds=[(None, None)] * 3 + [EXPONENT_BOUNDS] * 2,
        options={"maxiter": 2000, "maxfun": 4000, "ftol": tolerance, "gtol": 1e-7},
    )


def check_losses(points: Sequence[Point]) -> None:
    """Refuses points of equal losses, through which rounding errors would decide the fit.

    Raises:
        DataError: if there are points, and the losses of all agree to nine digits.
    """
    losses = [point.loss for point in points]
    if losses and max(losses) - min(losses) <= 1e-9 * max(losses):
        raise DataError(
            f"all {len(losses)} points have the loss {losses[0]:.6g}, a law needs losses that "
            "differ; check the column of the loss"
        )


def check_spread(log_n: Array, log_d: Array) -> None:
    """Refuses points on a line in (log N, log D), along which N and D cannot be separated.

    Args:
        log_n: logarithms of N, less their mean.
        log_d: logarithms of D, less their mean.

    Raises:
        DataError: if the spread along the line is too large a multiple of that across it.
    """
    wide, narrow = np.linalg.svd(np.stack([log_n, log_d], -1), compute_uv=False)
    if narrow * MAX_SPREAD_RATIO < wide:
        ratio = f"{wide / narrow:.3g}" if narrow > 1e-9 * wide else "infinitely many"
        raise DataError(
            f"log N and log D of the points spread {ratio} times more along a line than across it, "
            f"must be at most {MAX_SPREAD_RATIO:g}: a fixed ratio as D = 20 N does not "
            "separate N from D; add points off the line, some sizes at several token counts"
        )


def check_law(law: ScalingLaw, max_exponent: float) -> None:
    """Refuses a fit that ends at a bound: a factor of 0, or an exponent that cannot be told from 0.

    Args:
        law: the fit.
        max_exponent: the upper bound of its exponents.

    Raises:
        DataError: if there is one.
    """
    for name, constant, noun, points in (
        ("alpha", "A", "parameters", "sizes"),
        ("beta", "B", "tokens", "token counts"),
    ):
        exponent = law._asdict()[name]
        if law._asdict()[constant] <= 0:
            raise DataError(
                f"{constant} of the fit is 0: the loss of the points does not fall with more "
                f"{noun}; check the points, or add {points} over a wider range"
            )
        if not MIN_EXPONENT * (1 + 1e-6) < exponent < max_exponent * (1 - 1e-6):
            raise DataError(
                f"{name} of the fit is {exponent:.3g}, at the bound of {MIN_EXPONENT:g} to "
                f"{max_exponent:g}: the points do not determine it; add {points} over a wider range"
            )


def _distinct_optima(ends: list[optimize.OptimizeResult]) -> list[optimize.OptimizeResult]:
    """Returns the best result of the optimizer, then the best whose exponents differ from it."""
    optima: list[optimize.OptimizeResult] = []
    for end in sorted(ends, key=lambda r: r.fun):
        if all(np.abs(end.x[3:] - best.x[3:]).max() > MIN_EXPONENT_GAP for best in optima):
            optima.append(end)
    return optima[:N_STARTS]


def _starting_points(data: _LogData, n: Array, d: Array) -> list[Array]:
    """Returns the best point of the paper's grid for each pair of exponents."""
    exponents, logs = (0.0, 0.5, 1.0, 1.5, 2.0), np.arange(0.0, 26.0, 5.0)
    levels, starts = np.arange(-1.0, 1.1, 0.5), []
    for alpha in exponents:
        for beta in exponents:
            p, q = logs - alpha * n.mean(), logs - beta * d.mean()
            grid = np.stack(np.meshgrid(p, q, levels), -1).reshape(-1, 3)
            parts = (
                grid[:, :1] - alpha * data.n,
                grid[:, 1:2] - beta * data.d,
                np.broadcast_to(grid[:, 2:], (len(grid), data.n.size)),
            )
            residual = np.logaddexp(np.logaddexp(*parts[:2]), parts[2]) - data.loss
            best = special.huber(HUBER_DELTA, residual).sum(-1).argmin()
            starts.append(np.array([*grid[best], alpha, beta]))
    return starts


def _law_from_theta(theta: Array, n: float, d: float) -> ScalingLaw:
    p, q, e, alpha, beta = theta.tolist()
    return ScalingLaw(math.exp(e), math.exp(p + alpha * n), alpha, math.exp(q + beta * d), beta)
