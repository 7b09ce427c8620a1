"""Fits of one candidate by several approaches, and how far single points move the answer."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from errors import DataError
from formatting import format_scientific
from protocol.fit.points import PointSet, discount_repetition
from protocol.statistics.envelope import fit_envelope
from protocol.statistics.isoflop import MIN_SIZES, Frontier, Minimum, fit_isoflop, fit_minima
from protocol.statistics.scaling_law import (
    MAX_EPOCHS,
    Point,
    ScalingFit,
    ScalingLaw,
    find_optimum,
    fit_law,
    select_points,
)
from protocol.statistics.surface import SurfaceFit, fit_surface

APPROACHES = ("1", "2", "3", "surface")
MAX_INFLUENCES = 1000  # Limit of sizes for which the fit without each is computed.


class FitSettings(NamedTuple):
    """What a fit is asked for."""

    approaches: tuple[str, ...] = APPROACHES
    budgets: tuple[float, ...] = ()  # Training FLOPs at which the optimum is computed.
    targets: tuple[tuple[float, float], ...] = ()  # (N, D) at which the loss is predicted.
    n_resamples: int = 200
    with_repetition: bool = False  # Use effective tokens (arXiv:2305.16264).
    with_outside: bool = False  # Use minima outside of the sizes trained.


class ApproachResult(NamedTuple):
    """The fit of one approach, or why there is none."""

    approach: str
    problem: str = ""
    frontier: Frontier | None = None  # Of approaches 1 and 2.
    fit: ScalingFit | SurfaceFit | None = None  # Of approach 3 and of the surface.
    minima: tuple[Minimum, ...] = ()  # Of approach 2; it may have minima without a frontier.
    left_out: tuple[str, ...] = ()  # Of approach 2: what has no parabola, and why.
    ends_law: ScalingLaw | None = None  # Of the surface: without checkpoints, if there are any.


class PointInfluence(NamedTuple):
    """How far the seeds of one size move the optimal N of the surface."""

    budget: float
    params: float
    tokens: float
    # Whether the fit leaves the size out. `factor` is then that of the fit with it, else without.
    is_left_out: bool
    factor: float  # The optimal N over that of the fit; NaN: there is no surface then.

    @property
    def distance(self) -> float:
        """How far it moves the logarithm of the optimal N; infinite: there is no surface then."""
        return abs(math.log(self.factor)) if 0 < self.factor < math.inf else math.inf


class FitReport(NamedTuple):
    """All fits of one candidate."""

    source: PointSet
    settings: FitSettings
    points: tuple[Point, ...]  # Points that are fitted, with effective tokens if asked for.
    results: tuple[ApproachResult, ...]
    influences: tuple[PointInfluence, ...]  # Of all sizes, the largest first.
    budget: float  # The budget at which the influences are computed.


def fit_points(source: PointSet, settings: FitSettings) -> FitReport:
    """Fits the points of a candidate by each approach; one that is impossible says why."""
    points = source.points
    if settings.with_repetition:
        points = tuple(discount_repetition(points))
    results = tuple(_fit_approach(name, points, settings) for name in settings.approaches)
    budget = max(settings.budgets, default=max(p.compute for p in points))
    influences: list[PointInfluence] = []
    for result in results:
        if isinstance(result.fit, SurfaceFit):
            influences = _influences(points, result.fit, budget)
    return FitReport(source, settings, points, results, tuple(influences), budget)


def _fit_approach(approach: str, points: Sequence[Point], settings: FitSettings) -> ApproachResult:
    n = settings.n_resamples
    try:
        if approach == "1":
            # A gap that is the same everywhere moves no envelope.
            curves = [p for p in points if p.before_cooldown] or points
            return ApproachResult(approach, frontier=fit_envelope(curves, n_resamples=n))
        if approach == "2":
            return _fit_parabolas(run_ends(points), settings)
        if approach == "3":
            return ApproachResult(approach, fit=fit_law(points, n_resamples=n))
        surface = fit_surface(points, n_resamples=max(n, 1))
        return ApproachResult(approach, fit=surface, ends_law=_ends_law(points))
    except DataError as error:
        return ApproachResult(approach, problem=str(error))


def _fit_parabolas(ends: Sequence[Point], settings: FitSettings) -> ApproachResult:
    """Returns approach 2 through the budgets that have a parabola.

    Raises:
        DataError: if no budget has one.
    """
    used, _ = select_points(ends)
    sizes: dict[float, set[float]] = {}
    for point in used:
        sizes.setdefault(point.budget, set()).add(point.params)
    few = sorted(b for b, of_budget in sizes.items() if b and len(of_budget) < MIN_SIZES)
    left_out = [
        f"budget {format_scientific(budget)} has {len(sizes[budget])} sizes, a parabola needs "
        f"{MIN_SIZES} or more"
        for budget in few
    ]
    if n_without := sum(not point.budget for point in used):
        left_out.append(
            f"{n_without} of {len(used)} points have no budget, by which points are of one curve"
        )
    curves = [point for point in used if point.budget and point.budget not in few]
    if used and not curves:
        raise DataError("; ".join([*left_out[:6], "train more sizes at each budget"]))
    minima = tuple(fit_minima(curves))
    result = ApproachResult("2", minima=minima, left_out=tuple(left_out))
    n, outside = settings.n_resamples, settings.with_outside
    try:
        return result._replace(frontier=fit_isoflop(curves, n_resamples=n, with_outside=outside))
    except DataError as error:
        return result._replace(problem=str(error))


def _ends_law(points: Sequence[Point]) -> ScalingLaw | None:
    """Returns the surface through the ends of runs alone; None if it has the same points or none.

    Checkpoints follow the law of the ends only if their gap is the same everywhere.
    """
    ends = run_ends(points)
    if len(ends) == len(points):
        return None
    try:
        return fit_surface(ends, n_resamples=1, with_seeds=False).law
    except DataError:
        return None


def run_ends(points: Sequence[Point]) -> list[Point]:
    """Returns the points without those of checkpoints before the end of their run."""
    last: dict[int, float] = {}
    for point in points:
        last[point.run] = max(last.get(point.run, 0.0), point.tokens)
    return [point for point in points if not point.run or point.tokens == last[point.run]]


def _influences(points: Sequence[Point], fit: SurfaceFit, budget: float) -> list[PointInfluence]:
    """Returns how far each size moves the optimum: without it, or with it if it is left out."""
    base = find_optimum(fit.law, budget).params
    sizes: dict[tuple[float, float, float, bool], list[Point]] = {}
    for point in points:
        is_left_out = point.epochs > MAX_EPOCHS
        key = (point.budget, point.params, point.tokens, is_left_out)
        sizes.setdefault(key, []).append(point)
    if len(sizes) > MAX_INFLUENCES:
        return []
    influences = []
    for key, members in sizes.items():
        if key[3]:
            others = [*points, *(p._replace(epochs=1.0) for p in members)]
        else:
            others = [p for p in points if (p.budget, p.params, p.tokens) != key[:3]]
        try:
            law = fit_surface(others, n_resamples=1, with_seeds=False).law
            factor = find_optimum(law, budget).params / base
        except DataError:
            factor = math.nan
        influences.append(PointInfluence(*key, factor))
    return sorted(influences, key=lambda influence: -influence.distance)


def extrapolation_factor(points: Sequence[Point], params: float, tokens: float) -> float:
    """Returns how far N or D is outside the points, as a factor; 1: inside of both ranges."""
    factors = [1.0]
    for value, values in (
        (params, [p.params for p in points]),
        (tokens, [p.tokens for p in points]),
    ):
        factors += [value / max(values), min(values) / value if value else math.inf]
    return max(factors)


def bootstrap_laws(fit: ScalingFit | SurfaceFit) -> list[ScalingLaw]:
    """Returns the law of each resample."""
    if isinstance(fit, SurfaceFit):
        return [ScalingLaw(*row) for row in fit.size_laws.tolist()]
    return [*fit.bootstrap_laws]


def interval_of(values: Sequence[float]) -> tuple[float, float]:
    """Returns the 95 % interval of resampled values; NaN of none."""
    if not values:
        return math.nan, math.nan
    low = np.quantile(values, 0.025, method="lower")
    return float(low), float(np.quantile(values, 0.975, method="higher"))
