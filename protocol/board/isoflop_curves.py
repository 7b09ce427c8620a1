"""The curves of an isoFLOP study, which are compared at their minima, not size by size.

A curve is the rows of one candidate at one budget of its plan. It is compared only if it is
complete. If a run is missing, diverged or is excluded, the result itself would select the sizes.
Each budget has a parabola, and all complete curves of a candidate have one surface. A claim needs
both: where only one of them supports it, the two fits disagree, and nothing is claimed.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from errors import DataError
from formatting import format_scientific, format_si
from protocol.board.columns import format_score
from protocol.board.comparisons import count_declared
from protocol.board.rows import BoardRow
from protocol.records.study_record import StudyRecord
from protocol.statistics.hypothesis_tests import Difference, Interval
from protocol.statistics.isoflop import (
    MIN_COMPARED_SIZES,
    Minimum,
    fit_minima,
    minima_difference,
)
from protocol.statistics.sample import CandidateSample
from protocol.statistics.scaling_law import Point
from protocol.statistics.surface import SurfaceOptimum, fit_surface
from protocol.statistics.verdict import MetricSpec, Verdict, compare_candidates

KIND_LABELS = {
    "lower": "claimed",
    "higher": "claimed",
    "equivalent": "equivalent",
    "inconclusive": "not claimed",
    "no_variance": "no variance",
    "too_few_runs": "too few runs",
    "diverged": "diverged",
    "duplicate": "the same settings",
}


class IsoflopCurve(NamedTuple):
    """The rows of a candidate at one budget, with the minimum of their parabola."""

    candidate: str
    rows: tuple[BoardRow, ...]
    minimum: Minimum | None
    problem: str = ""  # Reason why the curve is compared with nothing.
    # Optimum of the surface through all complete curves of the candidate in its plan.
    optimum: SurfaceOptimum | None = None
    surface_problem: str = ""  # Reason why there is no surface.

    @property
    def study(self) -> StudyRecord:
        """The study that declares the curve."""
        return self.rows[0].first_run.study

    @property
    def sample(self) -> CandidateSample:
        """All runs of the curve; duplicate candidates have the same digest."""
        values = tuple(x for row in self.rows for x in row.sample.values)
        digest = " ".join(sorted(row.sample.digest for row in self.rows))
        return CandidateSample(self.candidate, values, digest=digest, n_sizes=len(self.rows))

    @property
    def sentence(self) -> str:
        """The minimum in words; blank if there is none inside the sizes trained."""
        m = self.minimum
        if m is None or m.is_at_edge:
            return ""
        text = (
            f"The parabola through the {len(self.rows)} sizes of {self.candidate} has its minimum, "
            f"{format_score(m.loss)}, at {format_si(m.params)} active parameters without embedding "
            f"and head ({_format_interval(m.params_interval)})"
        )
        if o := self.optimum:
            seeds = f", {_format_ends(o.seed_interval)} by seeds alone" if o.seed_interval else ""
            text += (
                f"; the surface through all of its budgets has its minimum at this budget, "
                f"{format_score(o.loss)}, at {format_si(o.params)} "
                f"({_format_interval(o.params_interval)}{seeds})"
            )
        else:
            text += f"; {self.surface_problem}" * bool(self.surface_problem)
        return f"{text}."

    def cost_sentence(self, reference: "IsoflopCurve") -> str:
        """Returns the size and the tokens at the minimum, relative to those of another curve."""
        m, base = self.minimum, reference.minimum
        if m is None or base is None or m.is_at_edge or base.is_at_edge or self is reference:
            return ""
        return (
            f"At its minimum, {self.candidate} has {m.params / base.params:.2f} x the parameters "
            f"(active, without embedding and head) and {m.tokens / base.tokens:.2f} x the tokens "
            f"that {reference.candidate} has at its minimum."
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know of the curve: an optimum off center, sizes off the curve."""
        m, texts = self.minimum, []
        if m is None or self.problem:
            return ()
        if m.is_off_center:
            low, high = (format_si(x) for x in m.size_range)
            texts.append(
                f"{self.candidate}: its minimum, {format_si(m.params)}, is outside the middle "
                f"third of its sizes, {low} to {high}, where a parabola is biased; "
                f"{_centering(self.candidate, m)}"
            )
        if m.misfit.is_significant:
            texts.append(
                f"{self.candidate}: its sizes scatter {math.sqrt(m.misfit.ratio):.2g} times as "
                f"much about the parabola as seeds explain (F test, p={m.misfit.p:.2g}), because "
                "of their tuning or because the curve is no parabola"
            )
        return tuple(texts)

    @property
    def json_tree(self) -> dict[str, object]:
        """The curve as leaderboard.json has it."""
        tree: dict[str, object] = {"candidate": self.candidate, "problem": self.problem}
        if (m := self.minimum) is not None:
            tree |= {
                "params": m.params,
                "loss": m.loss,
                "standard_error": m.standard_error,
                "is_at_edge": m.is_at_edge,
                "params_interval": None if m.params_interval is None else list(m.params_interval),
                "is_off_center": m.is_off_center,
                "misfit_p": None if math.isnan(m.misfit.p) else m.misfit.p,
            }
        if (o := self.optimum) is not None:
            tree["surface"] = {
                "params": o.params,
                "tokens": o.tokens,
                "loss": o.loss,
                "standard_error": o.standard_error,
                "params_interval": list(o.params_interval),
                "seed_interval": None if o.seed_interval is None else list(o.seed_interval),
            }
        return tree


def fit_curves(rows: Sequence[BoardRow], metric: MetricSpec) -> list[IsoflopCurve]:
    """Returns the curves of the rows that are points of one, the best first."""
    members: dict[tuple[str, str, str], list[BoardRow]] = {}
    for row in rows:
        study = row.first_run.study
        if study.isoflop_curve:
            members.setdefault((study.plan, study.isoflop_curve, study.candidate), []).append(row)
    curves = [_fit_curve(name, tuple(points), metric) for (_, _, name), points in members.items()]
    return sorted(curves, key=lambda c: (bool(c.problem), c.minimum.loss if c.minimum else 0.0))


def add_surfaces(curves: Sequence[IsoflopCurve]) -> list[IsoflopCurve]:
    """Returns the curves of all budgets with the optimum of the surface of each candidate."""
    members: dict[tuple[str, str, str], list[IsoflopCurve]] = {}
    for curve in curves:
        label = curve.study.isoflop_curve.rpartition("-")[0]
        members.setdefault((curve.study.plan, label, curve.candidate), []).append(curve)
    optima: dict[int, IsoflopCurve] = {}
    for siblings in members.values():
        # A curve without a minimum inside its sizes has no less to say of the surface.
        complete = [curve for curve in siblings if curve.minimum is not None]
        if not complete:
            continue
        try:
            fit = fit_surface(p for c in complete for row in c.rows for p in _points(row))
            fitted = [c._replace(optimum=fit.optimum(c.study.value or 0.0)) for c in complete]
        except DataError as error:
            problem = f"no surface: {error}"
            fitted = [curve._replace(surface_problem=problem) for curve in complete]
        optima |= {id(old): new for old, new in zip(complete, fitted, strict=True)}
    return [optima.get(id(curve), curve) for curve in curves]


def compare_minima(curves: Sequence[IsoflopCurve], metric: MetricSpec) -> list[Verdict]:
    """Returns the verdicts of the declared comparisons between the minima of curves of one plan."""
    all_verdicts: list[Verdict] = []
    plans = dict.fromkeys((curve.study.plan, curve.study.isoflop_curve) for curve in curves)
    for plan in plans:
        by_name = {
            curve.candidate: curve
            for curve in curves
            if (curve.study.plan, curve.study.isoflop_curve) == plan and not curve.problem
        }
        studies = [curve.study for curve in by_name.values()]
        runs = [run for curve in by_name.values() for row in curve.rows for run in row.runs]
        declared = dict.fromkeys(pair for study in studies for pair in study.comparisons)
        pairs = [pair for pair in declared if {*pair} <= by_name.keys() and pair[0] != pair[1]]
        if not pairs:
            continue
        used = metric._replace(margin=studies[0].margin or 0.0)
        n_other = max(count_declared(runs) - len(pairs), 0)
        verdicts = _compare_both(by_name, pairs, used, n_other)
        all_verdicts += [dataclasses.replace(verdict, is_declared=True) for verdict in verdicts]
    return all_verdicts


def _compare_both(
    by_name: dict[str, IsoflopCurve],
    pairs: Sequence[tuple[str, str]],
    metric: MetricSpec,
    n_other_comparisons: int,
) -> list[Verdict]:
    """Returns the verdicts that parabolas and surfaces both support."""
    first = next(iter(by_name.values()))
    budget = format_scientific(first.study.value or 0.0)

    def compare(differences: Sequence[Difference]) -> list[Verdict]:
        return compare_candidates(
            [by_name[key].sample for key in dict.fromkeys(key for pair in pairs for key in pair)],
            pairs,
            metric,
            scope=f"at the minima of their curves at {budget} FLOPs",
            n_other_comparisons=n_other_comparisons,
            differences=differences,
        )

    minima = {key: curve.minimum for key, curve in by_name.items() if curve.minimum}
    parabolas = compare([minima_difference(minima[a], minima[b]) for a, b in pairs])
    surfaces = compare([_surface_difference(by_name[a], by_name[b]) for a, b in pairs])
    return [agree(p, s) for p, s in zip(parabolas, surfaces, strict=True)]


def _surface_difference(a: IsoflopCurve, b: IsoflopCurve) -> Difference:
    """Returns the difference of the surfaces' optima; its error is infinite without a surface."""
    if a.optimum and b.optimum:
        return minima_difference(a.optimum, b.optimum)
    zero, infinite, one = np.asarray(0.0), np.asarray(math.inf), np.asarray(1.0)
    return Difference(zero, infinite, one, one)


def agree(parabola: Verdict, surface: Verdict) -> Verdict:
    """Returns the verdict of the parabolas if the surfaces support it, else that none is claimed.

    A claim that both tests must support keeps their level (intersection-union test).
    """
    if parabola.difference is None or surface.difference is None or parabola.kind == "duplicate":
        return parabola
    if not math.isfinite(float(surface.difference.standard_error)):
        remark = "a claim needs a surface through all budgets beside the parabolas"
        return dataclasses.replace(parabola, kind="inconclusive", p=1.0, remark=remark)
    p, tie_p = max(parabola.p, surface.p), max(parabola.equivalence_p, surface.equivalence_p)
    left, right = float(parabola.difference.mean), float(surface.difference.mean)
    if parabola.kind == surface.kind:
        remark = f"the surfaces differ by {right:.2g}"
        return dataclasses.replace(parabola, p=p, equivalence_p=tie_p, remark=remark)
    remark = (
        f"the two fits disagree, by {abs(left - right):.2g}: the parabolas differ by {left:.2g} "
        f"({KIND_LABELS[parabola.kind]}), the surfaces by {right:.2g} ({KIND_LABELS[surface.kind]})"
    )
    return dataclasses.replace(
        parabola, kind="inconclusive", p=p, equivalence_p=tie_p, remark=remark
    )


def _fit_curve(name: str, rows: tuple[BoardRow, ...], metric: MetricSpec) -> IsoflopCurve:
    if metric.better != "lower":
        return IsoflopCurve(
            name, rows, None, f"{name}: higher is better for the metric, so it has no minimum"
        )
    for row in rows:
        n_missing = row.sample.planned_runs - row.sample.n_runs
        if row.exclusions or row.sample.n_diverged or n_missing > 0:
            problem = f"{name}: its curve is not complete, because of {row.name}"
            return IsoflopCurve(name, rows, None, problem)
    try:
        (minimum,) = fit_minima(point for row in rows for point in _points(row))
        if len(rows) < MIN_COMPARED_SIZES:
            problem = (
                f"{name}: {len(rows)} sizes, a comparison of minima needs {MIN_COMPARED_SIZES} or "
                "more; train more sizes"
            )
            return IsoflopCurve(name, rows, minimum, problem)
    except DataError as error:
        return IsoflopCurve(name, rows, None, f"{name}: {error}")
    problem = (
        f"{name}: no minimum inside the sizes trained, of which {format_si(minimum.params)} is the "
        f"best; {_centering(name, minimum)}"
    )
    return IsoflopCurve(name, rows, minimum, problem if minimum.is_at_edge else "")


def _centering(name: str, minimum: Minimum) -> str:
    """Returns how the next study has its sizes around a minimum, or around the best size.

    A plan takes 6 N D for the FLOPs (`budget.match_isoflop`), although the head adds to them.
    """
    ratio = minimum.budget / (6 * minimum.params**2)
    return f"center the sizes on it with tokens_per_param={{{name!r}: {ratio:.3g}}}"


def _points(row: BoardRow) -> list[Point]:
    """Returns a point for each run with a score.

    Raises:
        DataError: if the size or the tokens of a run are unknown.
    """
    points = []
    for run in row.runs:
        if run.value is None:
            continue
        size, tokens = (run.costs.get(key) for key in ("active_non_embedding_params", "tokens"))
        if size is None or tokens is None:
            raise DataError(f"the size or the tokens of {run.folder} are unknown")
        flops, epochs = (run.costs.get(key, 0.0) for key in ("training_flops", "epochs"))
        point = Point(size, tokens, run.value, flops, epochs or 1.0, run.study.value or 0.0)
        points.append(point)
    return points


def _format_interval(interval: Interval | None) -> str:
    return f"95 %: {_format_ends(interval)}" if interval else "no size is excluded"


def _format_ends(interval: Interval) -> str:
    return f"{format_si(interval.low)} to {format_si(interval.high)}"
