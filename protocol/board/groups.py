"""A group: rows that cost the same, their order, and the verdicts on their pairs.

Studies declare pairs of candidates. Their union is compared, and nothing else. Where no study of
the group declares any, all pairs are compared, and called exploratory. Excluded rows are shown, but
do not take part: they set no cost, no margin, and count as no comparison. Rows have ranks only if
all of their pairs are compared. Else they are above or below the reference, or not distinguished
from it: fewer comparisons do not decide an order.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from protocol.board import isoflop_curves
from protocol.board.comparisons import data_agreement
from protocol.board.isoflop_curves import IsoflopCurve
from protocol.board.row_verdicts import compare_rows
from protocol.board.rows import DEFAULT_AXIS, TOLERANCE, BoardRow, distinct_names, make_row
from protocol.board.score_signal import ScoreSignal, group_signals
from protocol.records.run_record import RunRecord
from protocol.statistics.sample import CandidateSample
from protocol.statistics.verdict import MetricSpec, Verdict

RowOrder = Literal["ranks", "reference", "nothing"]


class Group(NamedTuple):
    """Rows with one value of the matched cost, the best first."""

    axis: str
    axis_declared: bool
    value: float | None
    rows: tuple[BoardRow, ...]
    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...]  # Reasons why rows or pairs are not compared.
    curves: tuple[IsoflopCurve, ...] = ()  # Curves of an isoFLOP study.
    # Name of the row of the reference that the study declares, else of the first row.
    reference_name: str = ""
    order: RowOrder = "nothing"  # What orders the rows.
    data_problems: tuple[str, ...] = ()  # Pairs of rows that saw other data.
    signals: tuple[ScoreSignal, ...] = ()  # Signal and noise of each score, the metric first.

    @property
    def reference(self) -> BoardRow:
        """The row that costs and data are compared with."""
        return next((row for row in self.rows if row.name == self.reference_name), self.rows[0])

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each row; that of the candidate, if the row is a size of its curve."""
        candidates = {row.name: curve.candidate for curve in self.curves for row in curve.rows}
        return tuple(candidates.get(row.name, row.name) for row in self.rows)

    @property
    def is_exploratory(self) -> bool:
        """Whether the axis or the comparisons were not declared before the runs."""
        has_declared = any(v.is_declared for v in self.verdicts)
        return not self.axis_declared or (bool(self.verdicts) and not has_declared)


def make_groups(records: Sequence[RunRecord], metric: MetricSpec) -> list[Group]:
    """Returns the groups of a comparable set by rising cost; rows of unknown cost are the last."""
    clusters = [
        (value, members, _make_rows(members)) for value, members in _cluster_by_value(records)
    ]
    by_cluster = [isoflop_curves.fit_curves(rows, metric) for _, _, rows in clusters]
    # A surface needs the curves of all budgets.
    curves = iter(isoflop_curves.add_surfaces([c for curves in by_cluster for c in curves]))
    return [
        _make_group(value, members, rows, [next(curves) for _ in of_cluster], metric)
        for (value, members, rows), of_cluster in zip(clusters, by_cluster, strict=True)
    ]


def sort_key(sample: CandidateSample, metric: MetricSpec) -> tuple[float, str]:
    """Returns the key that sorts samples: the best first, those without a mean last."""
    if sample.mean is None:
        return math.inf, sample.name
    return sample.mean if metric.better == "lower" else -sample.mean, sample.name


def _cluster_by_value(records: Sequence[RunRecord]) -> list[tuple[float | None, list[RunRecord]]]:
    """Returns clusters of records whose matched costs agree.

    Rows that can be ranked form the clusters, from the cheapest on. Then rows of too few runs, and
    then excluded rows, join the nearest cluster within the tolerance, or form one of their own.
    """
    tiers: tuple[list[tuple[float, RunRecord]], ...] = ([], [], [])
    unknown: list[RunRecord] = []
    for (_, name, cost), runs in _runs_by_candidate(records, _axis_value).items():
        row = make_row(name, runs)
        tier = tiers[2 if row.exclusions else 1 if row.too_few_runs else 0]
        if cost is None:
            unknown += runs
        else:
            tier += [(cost, run) for run in runs]
    clusters: list[tuple[float, list[RunRecord]]] = []
    for tier in tiers:
        new_clusters: list[tuple[float, list[RunRecord]]] = []
        for cost, record in sorted(tier, key=lambda item: item[0]):
            nearest = min(clusters, key=lambda c: abs(cost - c[0]), default=(math.inf, []))
            if abs(cost - nearest[0]) <= TOLERANCE * nearest[0] < math.inf:
                nearest[1].append(record)
            elif new_clusters and cost <= new_clusters[-1][0] * (1 + TOLERANCE):
                new_clusters[-1][1].append(record)
            else:
                new_clusters.append((cost, [record]))
        clusters += new_clusters
    by_cost: list[tuple[float | None, list[RunRecord]]] = [*sorted(clusters, key=lambda c: c[0])]
    return by_cost + ([(None, unknown)] if unknown else [])


def _axis_value(record: RunRecord) -> float | None:
    return record.study.value or None if record.study.axis else record.costs.get(DEFAULT_AXIS)


def _runs_by_candidate(
    records: Sequence[RunRecord], axis_value: Callable[[RunRecord], float | None]
) -> dict[tuple[str, str, float | None], list[RunRecord]]:
    """Returns the runs of each row: those that differ only in their seed."""
    members: dict[tuple[str, str, float | None], list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: (r.folder, r.run_id)):
        members.setdefault((record.identity, record.name, axis_value(record)), []).append(record)
    return members


def _make_rows(records: Sequence[RunRecord]) -> list[BoardRow]:
    candidates = list(_runs_by_candidate(records, lambda record: None).values())
    return [
        make_row(name, runs)
        for name, runs in zip(distinct_names(candidates), candidates, strict=True)
    ]


def _make_group(
    value: float | None,
    records: Sequence[RunRecord],
    rows: Sequence[BoardRow],
    curves: Sequence[IsoflopCurve],
    metric: MetricSpec,
) -> Group:
    axis = records[0].study.axis
    single_rows = [row for row in rows if not row.first_run.study.isoflop_curve]
    result = compare_rows(single_rows, metric)
    verdicts = [*result.verdicts, *isoflop_curves.compare_minima(curves, metric)]
    problems = [*result.problems, *(curve.problem for curve in curves if curve.problem)]
    problems += [warning for curve in curves for warning in curve.warnings]
    rows = [
        dataclasses.replace(
            row,
            rank_interval=result.ranks.get(row.name),
            standing=result.standings.get(row.name, ""),
            copy_of=result.copies.get(row.name, ""),
        )
        for row in rows
    ]
    for row in rows:
        row_problems = row.exclusions if row.first_run.study.isoflop_curve else row.problems
        problems += [f"{row.name}: {problem}" for problem in row_problems]
    rows.sort(key=lambda row: (bool(row.problems), *sort_key(row.sample, metric)))
    reference = next((row for row in rows if row.name == result.reference), rows[0])
    rows = [dataclasses.replace(row, data_agreement=data_agreement(row, reference)) for row in rows]
    return Group(
        axis=axis or DEFAULT_AXIS,
        axis_declared=bool(axis),
        value=value,
        rows=tuple(rows),
        verdicts=tuple(verdicts),
        problems=tuple(problems),
        curves=tuple(curves),
        reference_name=reference.name,
        data_problems=tuple(result.data_problems),
        signals=group_signals(rows, is_curve=bool(curves)),
        order="ranks" if result.ranks else "reference" if result.standings else "nothing",
    )
