"""The curves of an isoFLOP study, which are compared at their minima, not size by size.

A curve is the rows of one candidate at one budget of its plan. It is compared only if it is
complete. If a run is missing, diverged or is excluded, the result itself would select the sizes.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from errors import DataError
from formatting import format_scientific, format_si
from protocol.board.columns import format_score
from protocol.board.comparisons import count_declared
from protocol.board.rows import BoardRow
from protocol.records.study_record import StudyRecord
from protocol.statistics.isoflop import Minimum, fit_minima, minima_difference
from protocol.statistics.sample import CandidateSample
from protocol.statistics.scaling_law import Point
from protocol.statistics.verdict import MetricSpec, Verdict, compare_candidates


class IsoflopCurve(NamedTuple):
    """The rows of a candidate at one budget, with the minimum of their parabola."""

    candidate: str
    rows: tuple[BoardRow, ...]
    minimum: Minimum | None
    problem: str = ""  # Reason why the curve is compared with nothing.

    @property
    def study(self) -> StudyRecord:
        """The study that declares the curve."""
        return self.rows[0].first_run.study

    @property
    def sample(self) -> CandidateSample:
        """All runs of the curve; duplicate candidates have the same digest."""
        values = tuple(x for row in self.rows for x in row.sample.values)
        digest = " ".join(sorted(row.sample.digest for row in self.rows))
        return CandidateSample(self.candidate, values, digest=digest)

    @property
    def sentence(self) -> str:
        """The minimum in words; blank if there is none inside the sizes trained."""
        m = self.minimum
        if m is None or m.is_at_edge:
            return ""
        interval = "no size is excluded"
        if m.params_interval:
            low, high = (format_si(x) for x in m.params_interval)
            interval = f"95 %: {low} to {high}"
        return (
            f"The curve of {self.candidate} over {len(self.rows)} sizes has its minimum, "
            f"{format_score(m.loss)}, at {format_si(m.params)} active parameters without embedding "
            f"and head ({interval})."
        )

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
        minima = {key: curve.minimum for key, curve in by_name.items() if curve.minimum}
        budget = format_scientific(studies[0].value or 0.0)
        verdicts = compare_candidates(
            [by_name[key].sample for key in dict.fromkeys(key for pair in pairs for key in pair)],
            pairs,
            metric._replace(margin=studies[0].margin or 0.0),
            scope=f"at the minima of their curves at {budget} FLOPs",
            n_other_comparisons=max(count_declared(runs) - len(pairs), 0),
            differences=[minima_difference(minima[a], minima[b]) for a, b in pairs],
        )
        all_verdicts += [dataclasses.replace(verdict, is_declared=True) for verdict in verdicts]
    return all_verdicts


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
    except DataError as error:
        return IsoflopCurve(name, rows, None, f"{name}: {error}")
    problem = (
        f"{name}: no minimum inside the sizes trained, of which {format_si(minimum.params)} is the "
        "best; train larger or smaller ones"
    )
    return IsoflopCurve(name, rows, minimum, problem if minimum.is_at_edge else "")


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
