"""Candidates of an isoFLOP study at the minima of their curves: sizes are not judged one by one.

A curve is the rows of one candidate at one budget of its plan. It counts only whole: with a run
that diverged, is not there or is not comparable, who is left would have been chosen by the result.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from errors import DataError
from protocol.columns import scientific, score
from protocol.declared import Study, counted
from protocol.frontier import Minimum, apart, minima
from protocol.rows import Row
from protocol.scaling import Point
from protocol.verdict import Metric, Sample, Verdict, judged
from training.console import human


class Curve(NamedTuple):
    candidate: str
    rows: tuple[Row, ...]
    minimum: Minimum | None
    refusal: str = ""  # why it is compared with nothing

    @property
    def study(self) -> Study:
        return self.rows[0].first.study

    @property
    def sample(self) -> Sample:
        """All of its runs; copies have the same digest."""
        values = tuple(x for row in self.rows for x in row.sample.values)
        same = " ".join(sorted(row.sample.digest for row in self.rows))
        return Sample(self.candidate, values, digest=same)

    @property
    def sentence(self) -> str:
        """Of a minimum that was found."""
        m = self.minimum
        if m is None or m.edge:
            return ""
        span = m.interval and f"95 %: {human(m.interval.low)} to {human(m.interval.high)}"
        return (
            f"The curve of {self.candidate} has its minimum, {score(m.loss)}, at {human(m.params)} "
            f"active parameters without embedding and head ({span or 'no size is excluded'}), of "
            f"{len(self.rows)} sizes."
        )

    @property
    def tree(self) -> dict[str, Any]:
        """As JSON."""
        tree: dict[str, Any] = {"candidate": self.candidate, "refusal": self.refusal}
        if (m := self.minimum) is not None:
            tree |= {"params": m.params, "loss": m.loss, "error": m.error, "edge": m.edge}
            tree["interval"] = None if m.interval is None else list(m.interval)
        return tree


def drawn(rows: Sequence[Row], metric: Metric) -> list[Curve]:
    """The curves of the rows that are points of one, the best first."""
    members: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        study = row.first.study
        if study.curve:
            members.setdefault((study.plan, study.curve, study.candidate), []).append(row)
    found = [_curve(name, tuple(own), metric) for (_, _, name), own in members.items()]
    return sorted(found, key=lambda c: (bool(c.refusal), c.minimum.loss if c.minimum else 0.0))


def verdicts(curves: Sequence[Curve], metric: Metric) -> list[Verdict]:
    """Of the declared comparisons between curves of one plan, at their minima."""
    found: list[Verdict] = []
    plans = dict.fromkeys((curve.study.plan, curve.study.curve) for curve in curves)
    for plan, name in plans:
        own = {
            curve.candidate: curve
            for curve in curves
            if (curve.study.plan, curve.study.curve) == (plan, name) and not curve.refusal
        }
        studies = [curve.study for curve in own.values()]
        declared = dict.fromkeys(pair for study in studies for pair in study.comparisons)
        pairs = [pair for pair in declared if {*pair} <= own.keys() and pair[0] != pair[1]]
        if not pairs:
            continue
        lowest = {key: curve.minimum for key, curve in own.items() if curve.minimum}
        said = judged(
            [own[key].sample for key in dict.fromkeys(key for pair in pairs for key in pair)],
            pairs,
            metric._replace(margin=studies[0].margin or 0.0),
            where=f"at the minima of their curves at {scientific(studies[0].value or 0.0)} FLOPs",
            beside=max(counted(studies) - len(pairs), 0),
            differences=[apart(lowest[a], lowest[b]) for a, b in pairs],
        )
        found += [dataclasses.replace(verdict, declared=True) for verdict in said]
    return found


def _curve(name: str, rows: tuple[Row, ...], metric: Metric) -> Curve:
    if metric.better != "lower":
        return Curve(name, rows, None, f"{name}: more of the metric is better, it has no minimum")
    for row in rows:
        lacking = row.sample.planned - row.sample.runs
        if row.barred or row.sample.diverged or lacking > 0:
            return Curve(name, rows, None, f"{name}: its curve is not whole, by {row.name}")
    try:
        (found,) = minima(point for row in rows for point in _points(row))
    except DataError as error:
        return Curve(name, rows, None, f"{name}: {error}")
    refusal = (
        f"{name}: no minimum inside the sizes tried, of which {human(found.params)} is the best; "
        "train larger or smaller ones"
    )
    return Curve(name, rows, found, refusal if found.edge else "")


def _points(row: Row) -> list[Point]:
    """A run each; DataError if what it cost is not known."""
    found = []
    for run in row.runs:
        if run.value is None:
            continue
        size, tokens = (run.amounts.get(key) for key in ("active_body_params", "tokens"))
        if size is None or tokens is None:
            raise DataError(f"size or tokens of {run.folder} are not known")
        flops, epochs = (run.amounts.get(key, 0.0) for key in ("training_flops", "epochs"))
        point = Point(size, tokens, run.value, flops, epochs or 1.0, run.study.value or 0.0)
        found.append(point)
    return found
