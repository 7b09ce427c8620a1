"""A group: rows that cost the same, their order, and the verdicts on their pairs.

Studies declare pairs of candidates. Their union is compared, and nothing else. Where no study of
the group declares any, all pairs are compared, and called exploratory. Excluded rows are shown, but
do not take part: they set no cost, no margin, and count as no comparison.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from protocol.board import isoflop_curves
from protocol.board.isoflop_curves import IsoflopCurve
from protocol.board.rows import DEFAULT_AXIS, TOLERANCE, BoardRow, distinct_names, make_row
from protocol.records.run_record import RunRecord
from protocol.records.study_record import StudyRecord, count_declared
from protocol.statistics.verdict import (
    CandidateSample,
    MetricSpec,
    Verdict,
    compare_candidates,
    compute_ranks,
)

RANK_OF_DECLARED = (
    ". A rank counts only the rows that were shown to be better in a declared comparison"
)
MAX_RANKED = 40  # Candidates of a group whose pairs are compared at most.

NamePairs = list[tuple[str, str]]


class ComparisonPairs(NamedTuple):
    """Pairs of rows, by name."""

    declared: NamePairs
    exploratory: NamePairs
    too_few_runs: NamePairs  # Pairs with a row of too few runs, compared for the sentence only.
    margin_by_pair: Mapping[frozenset[str], float]  # Margins of the declared pairs.

    def margins(self, pairs: NamePairs) -> list[float]:
        """Returns the margin of each pair; 0 where none was declared."""
        return [self.margin_by_pair.get(frozenset(pair), 0.0) for pair in pairs]


class Group(NamedTuple):
    """Rows with one value of the matched cost, the best first."""

    axis: str
    axis_declared: bool
    value: float | None
    rows: tuple[BoardRow, ...]
    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...]  # Reasons why rows or pairs are not compared.
    curves: tuple[IsoflopCurve, ...] = ()  # Curves of an isoFLOP study.

    @property
    def is_exploratory(self) -> bool:
        """Whether the axis or the comparisons were not declared before the runs."""
        has_declared = any(v.is_declared for v in self.verdicts)
        return not self.axis_declared or (bool(self.verdicts) and not has_declared)


def make_groups(records: Sequence[RunRecord], metric: MetricSpec) -> list[Group]:
    """Returns the groups of a comparable set by rising cost; rows of unknown cost are the last."""
    return [_make_group(value, members, metric) for value, members in _cluster_by_value(records)]


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


def _make_group(value: float | None, records: Sequence[RunRecord], metric: MetricSpec) -> Group:
    axis = records[0].study.axis
    candidates = list(_runs_by_candidate(records, lambda record: None).values())
    rows = [
        make_row(name, runs)
        for name, runs in zip(distinct_names(candidates), candidates, strict=True)
    ]
    single_rows = [row for row in rows if not row.first_run.study.isoflop_curve]
    verdicts, ranks, problems = _compare_rows(single_rows, metric)
    curves = isoflop_curves.fit_curves(rows, metric)
    verdicts += isoflop_curves.compare_minima(curves, metric)
    problems += [curve.problem for curve in curves if curve.problem]
    rows = [dataclasses.replace(row, rank=ranks.get(row.name)) for row in rows]
    for row in rows:
        row_problems = row.exclusions if row.first_run.study.isoflop_curve else row.problems
        problems += [f"{row.name}: {problem}" for problem in row_problems]
    rows.sort(key=lambda row: (bool(row.problems), row.rank or 99, *sort_key(row.sample, metric)))
    rows = [dataclasses.replace(row, data_agreement=_same_data(row, rows[0])) for row in rows]
    return Group(
        axis=axis or DEFAULT_AXIS,
        axis_declared=bool(axis),
        value=value,
        rows=tuple(rows),
        verdicts=tuple(verdicts),
        problems=tuple(problems),
        curves=tuple(curves),
    )


def _compare_rows(
    rows: Sequence[BoardRow], metric: MetricSpec
) -> tuple[list[Verdict], dict[str, int | None], list[str]]:
    """Returns the verdicts of a group, the ranks that follow from them, and the problems.

    Declared claims are adjusted among themselves. Pairs with a row that is not ranked are compared
    for the sentence only: they must not make the adjustment of the others stricter.
    """
    comparable = sorted(
        (row for row in rows if not row.exclusions), key=lambda r: sort_key(r.sample, metric)
    )
    rankable = [row.name for row in comparable if not row.too_few_runs]
    studies = list(dict.fromkeys(run.study for row in comparable for run in row.runs))
    is_declared = any(study.comparisons for study in studies)
    pairs = _declared_pairs(comparable, studies) if is_declared else _all_pairs(comparable)
    problems = _pair_problems(pairs, rankable, is_declared and len(comparable) > 1)
    if max(len(pairs.declared), len(pairs.exploratory)) > math.comb(MAX_RANKED, 2):
        return [], {}, problems

    def compare(selected: NamePairs, is_declared: bool, n_other: int = 0) -> list[Verdict]:
        if not selected:
            return []
        names = {name for pair in selected for name in pair}
        samples = [row.sample for row in comparable if row.name in names]
        verdicts = compare_candidates(
            samples,
            selected,
            metric,
            n_other_comparisons=n_other,
            margins=pairs.margins(selected),
        )
        return [dataclasses.replace(v, is_declared=is_declared) for v in verdicts]

    count = count_declared(studies)
    declared = compare(pairs.declared, True, max(count - len(pairs.declared), 0))
    exploratory = compare(pairs.exploratory, False, max(count - len(pairs.exploratory), 0))
    compared = {name for pair in pairs.declared or pairs.exploratory for name in pair}
    samples = [row.sample for row in comparable if row.name in compared]
    ranks = compute_ranks(samples, declared or exploratory)
    return declared + exploratory + compare(pairs.too_few_runs, is_declared), ranks, problems


def _all_pairs(rows: Sequence[BoardRow]) -> ComparisonPairs:
    """Returns all pairs of rows; a row of too few runs is paired with the first row only."""
    rankable = [row.name for row in rows if not row.too_few_runs]
    first = [*rankable, *(row.name for row in rows)][:1]
    unranked = {row.name for row in rows} - {*rankable}
    pairs = [(name, row.name) for name in first for row in rows if row.name in unranked - {name}]
    return ComparisonPairs([], list(itertools.combinations(rankable, 2)), pairs, {})


def _declared_pairs(rows: Sequence[BoardRow], studies: Sequence[StudyRecord]) -> ComparisonPairs:
    """Returns the pairs of rows for the pairs of candidates that plans declare.

    Where a candidate of a plan has several rows, the plan does not declare which of them is
    compared. Then all are compared, which is exploratory.
    """
    rows_by_name: dict[str, list[BoardRow]] = {}
    rows_by_plan: dict[tuple[str, str], list[BoardRow]] = {}
    for row in rows:
        rows_by_name.setdefault(row.candidate, []).append(row)
        for plan, name in dict.fromkeys((r.study.plan, r.study.candidate) for r in row.runs):
            rows_by_plan.setdefault((plan, name), []).append(row)
    plans: dict[frozenset[str], dict[str, tuple[str, str]]] = {}
    smallest_margins: dict[frozenset[str], float] = {}
    for study in studies:
        for pair in study.comparisons:
            key = frozenset(pair)
            plans.setdefault(key, {})[study.plan] = pair
            margin = smallest_margins.get(key, math.inf)
            smallest_margins[key] = min(margin, study.margin or 0.0)
    declared, exploratory, too_few = (dict[frozenset[str], tuple[str, str]]() for _ in range(3))
    margins: dict[frozenset[str], float] = {}
    for candidates, pair_by_plan in plans.items():
        if len(candidates) < 2:
            continue
        rows_of_pairs = [
            [rows_by_plan.get((plan, n), []) for n in pair] for plan, pair in pair_by_plan.items()
        ]
        unique = [(x[0], y[0]) for x, y in rows_of_pairs if len(x) == len(y) == 1]
        a, b = (rows_by_name.get(name, []) for name in [*pair_by_plan.values()][-1])
        with_first = [(x, y) for x in a for y in b[:1]] + [(x, y) for x in a[:1] for y in b]
        ranked = [(x, y) for x in a for y in b if not x.too_few_runs and not y.too_few_runs]
        for x, y in unique or [*ranked, *with_first]:
            names = frozenset((x.name, y.name))
            target = declared if unique else exploratory
            (too_few if x.too_few_runs or y.too_few_runs else target)[names] = (x.name, y.name)
            margins[names] = smallest_margins[candidates] if unique else 0.0
    return ComparisonPairs(
        list(declared.values()), list(exploratory.values()), list(too_few.values()), margins
    )


def _pair_problems(pairs: ComparisonPairs, rankable: Sequence[str], is_declared: bool) -> list[str]:
    """Returns which comparisons of a group are not made, or not as they were declared."""
    n_all, limit = math.comb(len(rankable), 2), math.comb(MAX_RANKED, 2)
    if max(len(pairs.declared), len(pairs.exploratory)) > limit:
        count = len(pairs.declared or pairs.exploratory)
        return [
            f"{len(rankable)} candidates with {count:,} comparisons are not ranked; a group ranks "
            f"at most {MAX_RANKED} candidates"
        ]
    problems = []
    if is_declared and pairs.exploratory:
        problems = [
            "candidates have several rows here, and no plan declares which of them are compared"
        ]
    n_compared = len(pairs.declared) + len(pairs.exploratory)
    if is_declared and not n_compared:
        problems = [
            "no declared comparison is between rows that can be ranked, so nothing is compared"
        ]
    elif is_declared and n_compared < n_all:
        verb = "was" if n_compared == 1 else "were"
        problems.append(
            f"{n_compared} of {n_all} pairs {verb} declared, and only declared pairs are compared"
            + RANK_OF_DECLARED * bool(pairs.declared)
        )
    return problems


def _same_data(row: BoardRow, first_row: BoardRow) -> str:
    """Returns up to which step two rows saw the same batches; the minimum over shared seeds."""
    if row is first_row:
        return "reference"
    first_runs = {run.seed: run for run in first_row.runs}
    common_steps = [
        (_last_common_step(run.data_hashes, first_runs[run.seed].data_hashes), run.steps)
        for run in row.runs
        if run.seed in first_runs and run.data_hashes and first_runs[run.seed].data_hashes
    ]
    if not common_steps:
        return ""
    step, steps = min(common_steps)
    return f"{step:,} of {steps:,} steps" if step >= 0 else "broken: hashes differ, then agree"


def _last_common_step(a: Mapping[int, str], b: Mapping[int, str]) -> int:
    """Returns the last step up to which rolling hashes agree; -1 if they agree again later.

    Rolling hashes cannot agree again after they differed, so the latter is an error.
    """
    equal = [(step, a[step] == b[step]) for step in sorted(a.keys() & b.keys())]
    prefix = [step for step, is_equal in itertools.takewhile(lambda item: item[1], equal)]
    if sum(is_equal for _, is_equal in equal) > len(prefix):
        return -1
    return prefix[-1] if prefix else 0
