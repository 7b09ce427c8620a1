"""Fits of one candidate by several approaches, as data and as the lines that describe them.

The lines answer the checklist of arXiv:2502.18969: what was fitted to what, with which loss,
weights and starts, which points were left out, and how far single points move the answer.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from errors import DataError
from formatting import format_scientific, format_si
from protocol.fit.points import PointSet, discount_repetition
from protocol.statistics.envelope import fit_envelope
from protocol.statistics.isoflop import Frontier, Minimum, fit_isoflop, fit_minima
from protocol.statistics.scaling_law import (
    MAX_EPOCHS,
    N_STARTS,
    Point,
    ScalingFit,
    ScalingLaw,
    find_optimum,
    fit_law,
    select_points,
)
from protocol.statistics.surface import SurfaceFit, fit_surface
from protocol.statistics.surface_fit import N_GRID

APPROACHES = ("1", "2", "3", "surface")
FAR = 10.0  # Extrapolation factor from which a prediction is called far.
TITLES = {
    "1": "Approach 1, envelope of training curves",
    "2": "Approach 2, a parabola for each budget",
    "3": "Approach 3, L = E + A/N^alpha + B/D^beta by Huber's loss of log L",
    "surface": "Surface, L = E + A/N^alpha + B/D^beta by least squares of L",
}


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
    minima: tuple[Minimum, ...] = ()  # Of approach 2.
    ends_law: ScalingLaw | None = None  # Of the surface: without checkpoints, if there are any.


class FitReport(NamedTuple):
    """All fits of one candidate."""

    source: PointSet
    settings: FitSettings
    points: tuple[Point, ...]  # Points that are fitted, with effective tokens if asked for.
    results: tuple[ApproachResult, ...]
    influence: tuple[str, float] | None  # Point whose removal moves the optimum most, and factor.
    budget: float  # The budget at which the influence is computed.


def fit_points(source: PointSet, settings: FitSettings) -> FitReport:
    """Fits the points of a candidate by each approach; one that is impossible says why."""
    points = source.points
    if settings.with_repetition:
        points = tuple(discount_repetition(points))
    results = tuple(_fit_approach(name, points, settings) for name in settings.approaches)
    budget = max(settings.budgets, default=max(p.compute for p in points))
    influence = None
    for result in results:
        if isinstance(result.fit, SurfaceFit):
            influence = _influence(points, result.fit, budget)
    return FitReport(source, settings, points, results, influence, budget)


def _fit_approach(approach: str, points: Sequence[Point], settings: FitSettings) -> ApproachResult:
    n = settings.n_resamples
    try:
        if approach == "1":
            # A gap that is the same everywhere moves no envelope.
            curves = [p for p in points if p.before_cooldown] or points
            return ApproachResult(approach, frontier=fit_envelope(curves, n_resamples=n))
        if approach == "2":
            ends = _run_ends(points)
            minima = tuple(fit_minima(ends))
            frontier = fit_isoflop(ends, n_resamples=n, with_outside=settings.with_outside)
            return ApproachResult(approach, frontier=frontier, minima=minima)
        if approach == "3":
            return ApproachResult(approach, fit=fit_law(points, n_resamples=n))
        surface = fit_surface(points, n_resamples=max(n, 1))
        return ApproachResult(approach, fit=surface, ends_law=_ends_law(points))
    except DataError as error:
        return ApproachResult(approach, problem=str(error))


def _ends_law(points: Sequence[Point]) -> ScalingLaw | None:
    """Returns the surface through the ends of runs alone; None if it has the same points or none.

    Checkpoints follow the law of the ends only if their gap is the same everywhere.
    """
    ends = _run_ends(points)
    if len(ends) == len(points):
        return None
    try:
        return fit_surface(ends, n_resamples=1, with_seeds=False).law
    except DataError:
        return None


def _run_ends(points: Sequence[Point]) -> list[Point]:
    """Returns the points without those of checkpoints before the end of their run."""
    last: dict[int, float] = {}
    for point in points:
        last[point.run] = max(last.get(point.run, 0.0), point.tokens)
    return [point for point in points if not point.run or point.tokens == last[point.run]]


def _influence(points: Sequence[Point], fit: SurfaceFit, budget: float) -> tuple[str, float] | None:
    """Returns the point without which the optimum moves most, and the factor of that move."""
    base, worst = find_optimum(fit.law, budget).params, ("", 1.0)
    used, _ = select_points(points)
    sizes = sorted({(p.budget, p.params, p.tokens) for p in used})
    for key in sizes:
        others = [p for p in used if (p.budget, p.params, p.tokens) != key]
        try:
            law = fit_surface(others, n_resamples=1, with_seeds=False).law
        except DataError:
            continue
        factor = find_optimum(law, budget).params / base if base else math.inf
        if abs(math.log(max(factor, 1e-12))) > abs(math.log(worst[1])):
            worst = (f"N = {format_si(key[1])}, D = {format_si(key[2])}", factor)
    return worst if worst[0] else None


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


def describe(report: FitReport) -> list[str]:
    """Returns the lines of a report."""
    lines = [f"# {report.source.name}: {report.source.source}", *_checklist(report)]
    for result in report.results:
        lines.append(f"## {TITLES[result.approach]}")
        if result.problem:
            lines.append(f"not fitted: {result.problem}")
        elif result.frontier:
            lines += _frontier_lines(report, result)
        elif result.fit:
            lines += [*_law_lines(report, result.fit), *_ends_lines(report, result)]
    return lines


def _checklist(report: FitReport) -> list[str]:
    points, settings = report.points, report.settings
    used, dropped = select_points(points)
    runs_at = {(p.budget, p.params, p.tokens) for p in used}
    n_late = len(points) - len(_run_ends(points))
    noun = "scores" if n_late else "runs"
    lines = [
        f"points: {len(used)} {noun} at {len(runs_at)} sizes (the seeds of a size are one point), "
        f"N {_format_range([p.params for p in used])}, D "
        f"{_format_range([p.tokens for p in used])}, "
        f"loss {min(p.loss for p in used):.4g} to {max(p.loss for p in used):.4g}",
        "repetition: "
        + (
            "D is the effective tokens of arXiv:2305.16264"
            if settings.with_repetition
            else f"{dropped} points beyond {MAX_EPOCHS:g} epochs are left out; --repetition uses "
            "their effective tokens"
        ),
        f"left out: {len(report.source.excluded)} points"
        + "".join(f"; {text}" for text in report.source.excluded[:6]),
        f"starts: approach 3 from 25 pairs of exponents (its resamples from the best {N_STARTS} "
        f"optima), the surface from a grid of {N_GRID} x {N_GRID}; weights: the number of seeds; "
        f"intervals: 95 %, bootstrap with {settings.n_resamples} resamples",
        _flops_line(report),
    ]
    if n_late:
        n_early = sum(p.before_cooldown for p in points)
        lines.append(
            f"checkpoints: {n_late} points are steps before the end of their runs, {n_early} of "
            "them before a cooldown: the surface gives these a gap, approach 1 takes them alone, "
            "approach 3 leaves them out; bootstraps resample the points of a run together"
        )
    if report.influence:
        text, factor = report.influence
        lines.append(
            f"influence: without the point {text}, the optimal N of the surface at "
            f"{format_scientific(report.budget)} FLOPs is {factor:.3g} times as large"
        )
    return lines


def _flops_line(report: FitReport) -> str:
    exact = [
        p.training_flops / (6 * p.params * p.tokens) for p in report.points if p.training_flops
    ]
    if not exact:
        return "compute: C = 6 N D; the points have no exact count"
    text = f"compute: exact counts are {min(exact):.3g} to {max(exact):.3g} times 6 N D"
    shares = [share for share in report.source.head_shares if share]
    if shares:
        without = [e * (1 - s) for e, s in zip(exact, report.source.head_shares, strict=False)]
        text += f", without the head {min(without):.3g} to {max(without):.3g} times"
    return text


def _frontier_lines(report: FitReport, result: ApproachResult) -> list[str]:
    frontier, lines = result.frontier, list[str]()
    if frontier is None:
        return lines
    low, high = frontier.exponent_interval
    lines.append(
        f"N = {frontier.params.factor:.4g} C^{frontier.params.exponent:.4f} (95 %: {low:.4f} to "
        f"{high:.4f}), D = {frontier.tokens.factor:.4g} C^{frontier.tokens.exponent:.4f}, from "
        f"{frontier.groups_used} {'budgets' if result.minima else 'curves'}"
    )
    for m in result.minima:
        note = ""
        if m.is_at_edge:
            note = "; outside the sizes trained: train other sizes"
        elif m.is_off_center:
            note = "; outside the middle third of its sizes: the parabola is biased"
        ends = "no size is excluded"
        if m.params_interval:
            ends = f"95 %: {' to '.join(map(format_si, m.params_interval))}"
        lines.append(
            f"minimum at {format_scientific(m.budget)} FLOPs: N {format_si(m.params)} ({ends}), "
            f"loss {m.loss:.4f}{note}"
        )
    for budget in report.settings.budgets:
        params, tokens = frontier.params.predict(budget), frontier.tokens.predict(budget)
        lines.append(_optimum_line(report, budget, params, tokens, ""))
    return lines


def _law_lines(report: FitReport, fit: ScalingFit | SurfaceFit) -> list[str]:
    laws = bootstrap_laws(fit)
    lines = []
    for name, value, low, high in zip(ScalingLaw._fields, fit.law, fit.low, fit.high, strict=True):
        lines.append(f"{name} = {value:.6g} (95 %: {low:.4g} to {high:.4g})")
    if isinstance(fit, SurfaceFit) and fit.gap_interval:
        low, high = fit.gap_interval
        lines.append(f"gap before the cooldown = {fit.gap:.4g} (95 %: {low:.4g} to {high:.4g})")
    exponent = fit.law.beta / (fit.law.alpha + fit.law.beta)
    lines.append(f"optimal N grows as C^{exponent:.4f}, D as C^{1 - exponent:.4f}")
    if isinstance(fit, SurfaceFit):
        lines.append(f"squares {fit.scatter * fit.df:.6g} of {fit.df} degrees of freedom")
        if fit.misfit.is_significant:
            lines.append(
                f"warning: sizes scatter {math.sqrt(fit.misfit.ratio):.2g} times as much about the "
                f"surface as seeds explain (F test, p={fit.misfit.p:.2g})"
            )
    for budget in report.settings.budgets:
        best = find_optimum(fit.law, budget)
        ends = interval_of([find_optimum(law, budget).params for law in laws])
        note = f" (95 %: {' to '.join(map(format_si, ends))})"
        lines.append(_optimum_line(report, budget, best.params, best.tokens, note))
    for params, tokens in report.settings.targets:
        loss = fit.law.loss(params, tokens)
        low, high = interval_of([law.loss(params, tokens) for law in laws])
        lines.append(
            f"predicted at N {format_si(params)}, D {format_si(tokens)}: loss {loss:.4f} (95 % of "
            f"the law: {low:.4f} to {high:.4f}){_far(report, params, tokens)}"
        )
    return lines


def _ends_lines(report: FitReport, result: ApproachResult) -> list[str]:
    """Returns the law of the ends of runs alone, and whether the checkpoints agree with it."""
    if (law := result.ends_law) is None or result.fit is None:
        return []
    best = find_optimum(law, report.budget).params
    low, high = interval_of(
        [find_optimum(one, report.budget).params for one in bootstrap_laws(result.fit)]
    )
    agrees = low <= best <= high
    return [
        f"the ends of runs alone give E {law.E:.4g}, alpha {law.alpha:.4g}, beta {law.beta:.4g}, "
        f"and the optimal N {format_si(best)} at {format_scientific(report.budget)} FLOPs, "
        + ("inside the interval of all points" if agrees else "outside the interval of all points")
        + "; warning: the gap is not the same everywhere, trust the ends" * (not agrees)
    ]


def _optimum_line(report: FitReport, budget: float, params: float, tokens: float, note: str) -> str:
    return (
        f"optimum at {format_scientific(budget)} FLOPs: N {format_si(params)}{note}, D "
        f"{format_si(tokens)}, {tokens / params:.3g} tokens a parameter"
        f"{_far(report, params, tokens)}"
    )


def _far(report: FitReport, params: float, tokens: float) -> str:
    factor = extrapolation_factor(report.points, params, tokens)
    if factor <= 1.001:
        return ""
    warning = "; warning: far beyond the points, no interval covers a change of the law"
    return f"; extrapolated {factor:.3g}x{warning * (factor > FAR)}"


def _format_range(values: Sequence[float]) -> str:
    return f"{format_si(min(values))} to {format_si(max(values))}"


def to_json(report: FitReport) -> dict[str, object]:
    """Returns a report as JSON, with the runs that it was fitted to and their hashes."""
    budgets = report.settings.budgets or (report.budget,)
    return {
        "name": report.source.name,
        "source": report.source.source,
        "metric": report.source.metric,
        "n_points": len(report.points),
        "excluded": [*report.source.excluded],
        "lines": describe(report),
        "fits": {r.approach: _result_json(report, r, budgets) for r in report.results},
        "runs": [run._asdict() for run in report.source.runs],
    }


def _result_json(
    report: FitReport, result: ApproachResult, budgets: Sequence[float]
) -> dict[str, object]:
    tree: dict[str, object] = {"problem": result.problem}
    if frontier := result.frontier:
        tree |= {
            "params": frontier.params._asdict(),
            "tokens": frontier.tokens._asdict(),
            "exponent_interval": [*frontier.exponent_interval],
        }
    if fit := result.fit:
        tree |= {
            "law": fit.law._asdict(),
            "low": fit.low._asdict(),
            "high": fit.high._asdict(),
            "gap": fit.gap if isinstance(fit, SurfaceFit) and fit.gap_interval else None,
            "optima": [_optimum_json(report, fit, budget) for budget in budgets],
        }
    return tree


def _optimum_json(
    report: FitReport, fit: ScalingFit | SurfaceFit, budget: float
) -> dict[str, object]:
    """Returns the compute-optimal N and D of a budget, by C = 6 N D."""
    best = find_optimum(fit.law, budget)
    low, high = interval_of([find_optimum(law, budget).params for law in bootstrap_laws(fit)])
    factor = extrapolation_factor(report.points, best.params, best.tokens)
    return {
        "budget": budget,
        **best._asdict(),
        "params_interval": [low, high],
        "extrapolation": factor,
    }
