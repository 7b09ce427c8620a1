"""Fits of one candidate as the lines that describe them, and as JSON.

The lines answer the checklist of arXiv:2502.18969: what was fitted to what, with which loss,
weights and starts, which points were left out, and how far single points move the answer.
"""

import math
from collections.abc import Sequence

from formatting import format_scientific, format_si
from protocol.fit.report import (
    ApproachResult,
    FitReport,
    PointInfluence,
    bootstrap_laws,
    extrapolation_factor,
    interval_of,
    run_ends,
)
from protocol.statistics.isoflop import Minimum
from protocol.statistics.scaling_law import (
    EXPONENT_BOUNDS,
    MAX_EPOCHS,
    MIN_EXPONENT,
    N_STARTS,
    Point,
    ScalingFit,
    ScalingLaw,
    find_optimum,
    select_points,
)
from protocol.statistics.surface import SurfaceFit
from protocol.statistics.surface_fit import MAX_EXPONENT, N_GRID

FAR = 10.0  # Extrapolation factor from which a prediction is called far.
TITLES = {
    "1": "Approach 1, envelope of training curves",
    "2": "Approach 2, a parabola for each budget",
    "3": "Approach 3, L = E + A/N^alpha + B/D^beta by Huber's loss of log L",
    "surface": "Surface, L = E + A/N^alpha + B/D^beta by least squares of L",
}


def describe(report: FitReport) -> list[str]:
    """Returns the lines of a report."""
    lines = [f"# {report.source.name}: {report.source.source}", *_checklist(report)]
    for result in report.results:
        lines.append(f"## {TITLES[result.approach]}")
        if result.problem:
            lines.append(f"not fitted: {result.problem}")
        lines += _frontier_lines(report, result)
        if result.fit:
            lines += [*_law_lines(report, result.fit), *_ends_lines(report, result)]
    return lines


def _checklist(report: FitReport) -> list[str]:
    points, settings = report.points, report.settings
    used, dropped = select_points(points)
    runs_at = {(p.budget, p.params, p.tokens) for p in used}
    n_late = len(points) - len(run_ends(points))
    noun = "scores" if n_late else "runs"
    lines = [
        f"points: {len(used)} {noun} at {len(runs_at)} sizes (the seeds of a size are one point)"
        + (f", {_format_ranges(used)}" if used else ""),
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
        f"intervals: 95 %, bootstrap with {settings.n_resamples} resamples"
        + "; warning: an interval of 95 % needs 40 or more"
        * (settings.n_resamples < 40),
        _flops_line(report),
    ]
    if n_late:
        n_early = sum(p.before_cooldown for p in points)
        lines.append(
            f"checkpoints: {n_late} points are steps before the end of their runs, {n_early} of "
            "them before a cooldown: the surface gives these a gap, approach 1 takes them alone, "
            "approach 3 leaves them out; bootstraps resample the points of a run together"
        )
    for is_left_out in (False, True):
        of_kind = [one for one in report.influences if one.is_left_out == is_left_out]
        lines += [_influence_line(report, one) for one in of_kind[:1]]
    return lines


def _influence_line(report: FitReport, influence: PointInfluence) -> str:
    """Returns the line of the point that moves the optimum most; fit.json has all of them."""
    kind = "with the left out" if influence.is_left_out else "without the"
    text = (
        f"influence: {kind} point N = {format_si(influence.params)}, D = "
        f"{format_si(influence.tokens)}, "
    )
    if math.isnan(influence.factor):
        return f"{text}there is no surface"
    return (
        f"{text}the optimal N of the surface at {format_scientific(report.budget)} FLOPs is "
        f"{influence.factor:.3g} times as large; no other point moves it further"
    )


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
    lines = [f"left out: {text}" for text in result.left_out[:6]]
    if n_more := len(result.left_out[6:]):
        lines.append(f"left out: {n_more} more budgets of too few sizes")
    if frontier := result.frontier:
        low, high = frontier.exponent_interval
        lines.append(
            f"N = {frontier.params.factor:.4g} C^{frontier.params.exponent:.4f} (95 %: {low:.4f} "
            f"to {high:.4f}), D = {frontier.tokens.factor:.4g} C^{frontier.tokens.exponent:.4f}, "
            f"from {frontier.groups_used} {'budgets' if result.minima else 'curves'}"
        )
    lines += map(_minimum_line, result.minima)
    if frontier:
        for budget in report.settings.budgets:
            params, tokens = frontier.params.predict(budget), frontier.tokens.predict(budget)
            lines.append(_optimum_line(report, budget, params, tokens, ""))
    return lines


def _minimum_line(minimum: Minimum) -> str:
    at = f"at {format_scientific(minimum.budget)} FLOPs"
    best = f"N {format_si(minimum.params)}"
    if minimum.is_at_edge:
        low, high = minimum.size_range
        sizes = {low: "smaller", high: "larger"}.get(minimum.params, "other")
        return f"no minimum {at} inside the sizes trained, the best of them is {best}: train " + (
            f"{sizes} sizes"
        )
    ends = "no size is excluded"
    if minimum.params_interval:
        ends = f"95 %: {' to '.join(map(format_si, minimum.params_interval))}"
    note = "; outside the middle third of its sizes: the parabola is biased"
    return f"minimum {at}: {best} ({ends}), loss {minimum.loss:.4f}{note * minimum.is_off_center}"


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
    lines += _bound_lines(fit)
    if isinstance(fit, SurfaceFit):
        lines.append(f"squares {fit.scatter * fit.df:.6g} of {fit.df} degrees of freedom")
        lines += _misfit_lines(fit)
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


def _bound_lines(fit: ScalingFit | SurfaceFit) -> list[str]:
    """Returns a warning for each exponent whose interval reaches a bound of the search."""
    highest = MAX_EXPONENT if isinstance(fit, SurfaceFit) else EXPONENT_BOUNDS[1]
    return [
        f"warning: the interval of {name} reaches a bound of the search ({MIN_EXPONENT:g} to "
        f"{highest:g}): the points hardly determine it"
        for name in ("alpha", "beta")
        if getattr(fit.low, name) < 1.01 * MIN_EXPONENT or getattr(fit.high, name) > 0.99 * highest
    ]


def _misfit_lines(fit: SurfaceFit) -> list[str]:
    """Returns warnings of sizes that scatter more than their seeds explain."""
    if not fit.misfit.is_significant:
        return []
    lines = [
        f"warning: sizes scatter {math.sqrt(fit.misfit.ratio):.2g} times as much about the "
        f"surface as seeds explain (F test, p={fit.misfit.p:.2g})"
    ]
    low, high = fit.means.n_runs.min(), fit.means.n_runs.max()
    if low < high:
        lines.append(
            f"warning: sizes have {low:.0f} to {high:.0f} seeds, by which they are weighted; where "
            "sizes scatter more than seeds explain, intervals are then too narrow: give each size "
            "the same number of seeds"
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
    compute = 6 * params * tokens / max(6 * p.params * p.tokens for p in report.points)
    if max(factor, compute) <= 1.001:
        return ""
    warning = "; warning: far beyond the points, no interval covers a change of the law"
    return (
        f"; extrapolated {factor:.3g}x in N or D, {max(compute, 1.0):.3g}x in 6 N D"
        f"{warning * (max(factor, compute / FAR) > FAR)}"
    )


def _format_ranges(points: Sequence[Point]) -> str:
    params, tokens, losses = zip(*((p.params, p.tokens, p.loss) for p in points), strict=True)
    return (
        f"N {format_si(min(params))} to {format_si(max(params))}, D {format_si(min(tokens))} to "
        f"{format_si(max(tokens))}, loss {min(losses):.4g} to {max(losses):.4g}"
    )


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
        "influences": [
            {**one._asdict(), "factor": None if math.isnan(one.factor) else one.factor}
            for one in report.influences
        ],
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
