"""The surface L = E + A / N^alpha + B / D^beta through the sizes of all budgets of a candidate.

It is fitted by least squares to one point a size (`surface_fit.py`), where a parabola is fitted to
one budget. Parabolas are biased where alpha differs from beta or the sizes are not centered on the
optimum (arXiv:2603.22339); the surface is not, if the law holds. Its bootstrap resamples sizes
(residuals of their means, which carry all that is particular to a size), and, beside it, seeds
within sizes.

Checkpoints of a run may be further points. Those before the cooldown of the learning rate lie above
the law by a gap, a sixth constant, which is assumed to be the same at all N and D. Points of one
run are not independent: the bootstrap then draws one factor a run for all residuals of its points
(the wild cluster bootstrap of Cameron, Gelbach & Miller 2008, with the six weights of Webb 2014).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from errors import DataError
from protocol.statistics.hypothesis_tests import Interval
from protocol.statistics.scaling_law import (
    MIN_POINTS,
    Point,
    ScalingLaw,
    check_law,
    check_losses,
    check_run_count,
    check_spread,
    run_indices,
    select_points,
)
from protocol.statistics.size_means import LackOfFit, SizeMeans, average_seeds, lack_of_fit
from protocol.statistics.surface_fit import (
    MAX_EXPONENT,
    SurfaceData,
    SurfaceSolutions,
    solve_surfaces,
)

N_RESAMPLES = 200
N_CONSTANTS = 5  # Besides the gap.
# Factors of the residuals of a run, of mean 0 and variance 1 (Webb 2014).
WILD_WEIGHTS = np.array([-np.sqrt(1.5), -1.0, -np.sqrt(0.5), np.sqrt(0.5), 1.0, np.sqrt(1.5)])
REACH = 100.0  # Factor beyond the sizes trained within which an optimum is searched.
NORMAL_QUANTILE = 1.959963984540054

Array = np.ndarray


class SurfaceOptimum(NamedTuple):
    """The N of the least loss of the surface among the models of one budget."""

    budget: float
    params: float
    tokens: float
    loss: float
    standard_error: float  # Of the loss, by the scatter of sizes about the surface.
    df: int
    params_interval: Interval  # 95 %, bootstrap over sizes.
    seed_interval: Interval | None  # 95 %, bootstrap over seeds alone; None: one seed each.


class SurfaceFit(NamedTuple):
    """A fitted surface with its bootstrap."""

    law: ScalingLaw
    means: SizeMeans
    points_dropped: int  # Points beyond 4 epochs.
    scatter: float  # Weighted mean square of sizes about the surface.
    df: int
    misfit: LackOfFit
    size_laws: Float[Array, "r 5"]  # E, A, alpha, B, beta of each resample of sizes.
    seed_laws: Float[Array, "r 5"]  # The same over seeds; empty: one seed each, or shared runs.
    gap: float = 0.0  # Loss above the law before the cooldown; 0 too if no point is.
    gap_interval: Interval | None = None  # 95 %, bootstrap; None: no point is before a cooldown.

    @property
    def low(self) -> ScalingLaw:
        """The lower ends of the 95 % intervals of the constants, each on its own."""
        return ScalingLaw(*np.quantile(self.size_laws, 0.025, axis=0).tolist())

    @property
    def high(self) -> ScalingLaw:
        """The upper ends of the 95 % intervals of the constants, each on its own."""
        return ScalingLaw(*np.quantile(self.size_laws, 0.975, axis=0).tolist())

    def optimum(self, budget: float) -> SurfaceOptimum:
        """Returns the compute-optimal size of a budget, at the exact costs of its models.

        Raises:
            DataError: if fewer than 3 sizes were trained at the budget.
        """
        path = _TokenPath.through(self.means.at(budget), budget)
        laws = np.array([self.law])
        (x,) = _minimize_path(laws, path)
        params, tokens = float(np.exp(x)), float(np.exp(path.log_tokens(x)))
        seeds = None
        if len(self.seed_laws):
            seeds = _interval(_minimize_path(self.seed_laws, path))
        return SurfaceOptimum(
            *(budget, params, tokens, self.law.loss(params, tokens)),
            *(self.standard_error(params, tokens), self.df),
            *(_interval(_minimize_path(self.size_laws, path)), seeds),
        )

    def standard_error(self, params: float, tokens: float) -> float:
        """Returns the standard error of the surface at N and D, by the delta method."""
        log_n, log_d = np.log(self.means.params), np.log(self.means.tokens)
        jacobian = _gradient(self.law, log_n, log_d, self.means.gaps)
        jacobian *= np.sqrt(self.means.weights)[:, None]
        scale = np.sqrt((jacobian**2).sum(0)) + 1e-300
        row = _gradient(self.law, np.log([params]), np.log([tokens]), np.zeros(1))[0]
        # At the end of a run there is no gap.
        row = np.append(row, np.zeros(len(scale) - len(row))) / scale
        inverse = np.linalg.pinv((jacobian / scale).T @ (jacobian / scale), rcond=1e-13)
        return float(np.sqrt(max(row @ inverse @ row, 0.0) * self.scatter))


def fit_surface(
    points: Iterable[Point],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    with_seeds: bool = True,
) -> SurfaceFit:
    """Fits the surface to one point a size and bootstraps it.

    Args:
        points: the runs; the seeds of a size count as one point.
        n_resamples: resamples of sizes, and as many of seeds.
        seed: seed of the resamples.
        with_seeds: whether seeds are resampled too.

    Raises:
        DataError: if the points do not determine the five constants.
    """
    used, points_dropped = select_points(points)
    check_losses(used)
    means = average_seeds(used)
    n_sizes, n_tokens = len({*means.params}), len({*means.tokens})
    if len(means.losses) < MIN_POINTS or min(n_sizes, n_tokens) < 3:
        raise DataError(
            f"{len(means.losses)} points of {n_sizes} sizes and {n_tokens} token counts do not "
            f"determine a surface of five constants; give {MIN_POINTS} points or more, of 3 sizes "
            "and 3 token counts or more"
        )
    check_run_count(int(run_indices(used).max()) + 1)
    log_n, log_d = np.log(means.params), np.log(means.tokens)
    gaps = means.gaps if means.gaps.any() else None
    if gaps is not None and gaps.all():
        raise DataError("all points are before the cooldown of their runs; give points at the end")
    data = SurfaceData(log_n - log_n.mean(), log_d - log_d.mean(), means.weights, gaps)
    check_spread(data.log_n, data.log_d)
    centers = float(log_n.mean()), float(log_d.mean())
    solution = solve_surfaces(data, means.losses[None])
    law = ScalingLaw(*_laws(solution, centers)[0].tolist())
    check_law(law, MAX_EXPONENT)
    gap = 0.0 if gaps is None else float(solution.constants[0, 3])
    if gaps is not None and gap <= 0:
        raise DataError(
            "points before the cooldown do not lie above the ends of runs: their gap is 0, its "
            "bound; leave them out, or take later checkpoints of longer runs"
        )
    df = len(means.losses) - N_CONSTANTS - (gaps is not None)
    scatter = float(solution.squares[0]) / df
    rng = np.random.default_rng(seed)
    fitted = law.loss(means.params, means.tokens) + gap * means.gaps
    by_size = _resample_sizes(law, means, fitted, n_resamples, rng)
    seeds = by_size[:0]
    if with_seeds and means.seed_df and not means.is_clustered:
        seeds = _resample_seeds(means, fitted, n_resamples, rng)
    solutions = solve_surfaces(data, np.concatenate([by_size, seeds]))
    laws, interval = _laws(solutions, centers), None
    if gaps is not None:
        ends = np.quantile(solutions.constants[: len(by_size), 3], [0.025, 0.975])
        interval = Interval(*ends.tolist())
    return SurfaceFit(
        *(law, means, points_dropped, scatter, df, lack_of_fit(scatter, df, means)),
        *(laws[: len(by_size)], laws[len(by_size) :], gap, interval),
    )


class _TokenPath(NamedTuple):
    """log D of the models of one budget as a cubic in log N (of few sizes, a parabola)."""

    coefficients: Float[Array, " c"]
    center: float
    low: float
    high: float

    @classmethod
    def through(cls, means: SizeMeans, budget: float) -> "_TokenPath":
        x, d = np.log(means.params), np.log(means.tokens)
        if len({*means.params}) < 3:
            raise DataError(
                f"budget {budget:g} has {len({*means.params})} sizes, the optimum of a budget "
                "needs 3 or more; train more sizes"
            )
        degree = 3 if len({*means.params}) > 5 else 2
        return cls(
            np.polyfit(x - x.mean(), d, degree), float(x.mean()), float(x.min()), float(x.max())
        )

    def log_tokens(self, x: Array) -> Array:
        """Returns log D at log N, on a straight line beyond the sizes."""
        inside = np.clip(x, self.low, self.high)
        return np.polyval(self.coefficients, inside - self.center) + self.slope(x) * (x - inside)

    def slope(self, x: Array) -> Array:
        """Returns the derivative of log D by log N."""
        inside = np.clip(x, self.low, self.high)
        return np.polyval(np.polyder(self.coefficients), inside - self.center)


def _minimize_path(laws: Array, path: _TokenPath) -> Array:
    """Returns log N of the least loss along a path, for each law, by bisection of the slope."""
    _, A, alpha, B, beta = laws.T
    low = np.full(len(laws), path.low - np.log(REACH))
    high = np.full(len(laws), path.high + np.log(REACH))
    for _ in range(60):
        x = (low + high) / 2
        d = path.log_tokens(x)
        slope = -alpha * A * np.exp(-alpha * x) - beta * B * np.exp(-beta * d) * path.slope(x)
        low, high = np.where(slope < 0, x, low), np.where(slope < 0, high, x)
    return (low + high) / 2


def _gradient(law: ScalingLaw, log_n: Array, log_d: Array, gaps: Array) -> Float[Array, "k c"]:
    """Returns the derivatives of the loss by E, A, alpha, B and beta, and by the gap if any."""
    u, v = np.exp(-law.alpha * log_n), np.exp(-law.beta * log_d)
    columns = [np.ones_like(u), u, -law.A * u * log_n, v, -law.B * v * log_d]
    return np.stack([*columns, gaps] if gaps.any() else columns, -1)


def _laws(solutions: SurfaceSolutions, centers: tuple[float, float]) -> Float[Array, "m 5"]:
    """Returns E, A, alpha, B and beta of N and D that are not centered."""
    (alpha, beta), (E, a, b) = solutions.exponents.T, solutions.constants.T[:3]
    A, B = a * np.exp(alpha * centers[0]), b * np.exp(beta * centers[1])
    return np.stack([E, A, alpha, B, beta], -1)


def _resample_sizes(
    law: ScalingLaw, means: SizeMeans, fitted: Array, count: int, rng: np.random.Generator
) -> Float[Array, "r k"]:
    """Returns losses with resampled residuals of sizes, as large as the degrees of freedom ask."""
    roots = np.sqrt(means.weights)
    jacobian = _gradient(law, np.log(means.params), np.log(means.tokens), means.gaps)
    jacobian *= roots[:, None]
    basis = np.linalg.svd(jacobian / np.sqrt((jacobian**2).sum(0) + 1e-300), False)[0]
    leverage = np.minimum((basis**2).sum(-1), 0.95)
    residual = (means.losses - fitted) * roots / np.sqrt(1 - leverage)
    residual -= residual.mean()
    df = len(fitted) - jacobian.shape[1]
    scatter = float((means.weights * (means.losses - fitted) ** 2).sum()) / df
    spread = np.sqrt(scatter / max(float((residual**2).mean()), 1e-300))
    if means.is_clustered:
        n_runs = means.clusters.max() + 1
        run_df = max(n_runs - jacobian.shape[1], 2)
        residual *= spread * special.stdtrit(run_df, 0.975) / NORMAL_QUANTILE
        factors = rng.choice(WILD_WEIGHTS, (count, n_runs))[:, means.clusters]
        return fitted + factors * residual / roots
    residual *= spread * special.stdtrit(df, 0.975) / NORMAL_QUANTILE
    return fitted + rng.choice(residual, (count, len(fitted))) / roots


def _resample_seeds(
    means: SizeMeans, fitted: Array, count: int, rng: np.random.Generator
) -> Float[Array, "r k"]:
    """Returns losses with the mean of resampled seeds of each size; a single run stays."""
    columns = []
    for runs, loss in zip(means.runs, fitted, strict=True):
        n = len(runs)
        deviations = (np.array(runs) - np.mean(runs)) * np.sqrt(n / max(n - 1, 1))
        columns.append(loss + rng.choice(deviations, (count, n)).mean(-1))
    return np.stack(columns, -1)


def _interval(log_values: Array) -> Interval:
    low, high = np.exp(np.quantile(log_values, [0.025, 0.975], method="weibull")).tolist()
    return Interval(low, high)
