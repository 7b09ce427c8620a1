"""Builds the board: groups records into comparable sets, so that only like is ranked with like.

The board is a pure function of the records. `protocol/board/__init__.py` defines its vocabulary.
Rows without a declared axis form groups by their training FLOPs, which are called exploratory.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from protocol.board.across_sizes import AcrossSizes, compare_groups
from protocol.board.columns import PARETO_COSTS
from protocol.board.groups import Group, make_groups, sort_key
from protocol.board.rows import BoardRow
from protocol.board.study_cost import with_study_costs
from protocol.records.comparability import COMPARABILITY_KEYS, NO_EVALUATION, key_label
from protocol.records.contradictions import mark_contradictions
from protocol.records.fit_file import FittedLaw
from protocol.records.metrics import metric_direction, metric_problem
from protocol.records.run_record import RunRecord, UnreadableResult
from protocol.records.scores import part_difference
from protocol.records.study_record import STAGE
from protocol.statistics.verdict import MetricSpec


class ComparableSet(NamedTuple):
    """Groups whose runs agree in all comparability keys, the axis and the better direction."""

    keys: Mapping[str, str]
    metric: MetricSpec
    metric_name: str
    groups: tuple[Group, ...]
    across: AcrossSizes | None = None  # What the groups say together; None of a single cost.
    laws: tuple[FittedLaw, ...] = ()  # Laws that were fitted to the runs (`fitted_laws.py`).

    @property
    def rows(self) -> list[BoardRow]:
        """The rows of all groups."""
        return [row for group in self.groups for row in group.rows]


class Board(NamedTuple):
    """All comparable sets, with what is not in them."""

    comparable_sets: tuple[ComparableSet, ...]
    not_comparable: tuple[str, ...]  # For each further set, the keys in which it differs.
    tuning_runs: int  # Number of runs that served to choose a setting.
    stage_runs: int  # Number of runs that are earlier stages of others.
    unreadable: tuple[UnreadableResult, ...]
    fit_source: str = ""  # File of the fitted laws, with its hash; blank: none was given.
    fit_problems: tuple[str, ...] = ()  # Why laws of that file are not shown.


def make_board(records: Iterable[RunRecord], unreadable: Iterable[UnreadableResult] = ()) -> Board:
    """Returns the board of the records, whose order does not matter."""
    all_records = sorted(records, key=lambda r: (r.folder, r.run_id))
    marked = mark_contradictions(all_records)
    reported = _fill_missing_evaluation([r for r in marked if r.is_reported])
    members: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in reported:
        direction = metric_direction(record.metric, record.study) or ""
        key = (*_key_values(record), record.study.axis, direction)
        members.setdefault(key, []).append(record)
    sets = [_make_comparable_set(group, all_records) for group in members.values()]
    sets.sort(key=lambda s: (-len(s.rows), list(s.keys.values())))
    not_comparable = tuple(_incomparable_reasons(sets))
    n_stages = sum(record.study.role == STAGE for record in all_records)
    n_tuning = len(all_records) - len(reported) - n_stages
    return Board(tuple(sets), not_comparable, n_tuning, n_stages, tuple(sorted(unreadable)))


def _fill_missing_evaluation(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Gives each run without a score the evaluation of its related runs, if they share one.

    Such a run, which diverged or failed, would otherwise be in a comparable set of its own.
    """
    evaluations: dict[tuple[object, ...], set[str]] = {}
    for record in records:
        if record.keys["evaluation"] != NO_EVALUATION and not record.external_source:
            for key in _related_run_keys(record):
                evaluations.setdefault(key, set()).add(record.keys["evaluation"])

    def fill(record: RunRecord) -> RunRecord:
        options = [evaluations[key] for key in _related_run_keys(record) if key in evaluations]
        if record.keys["evaluation"] != NO_EVALUATION or not options or len(options[0]) > 1:
            return record
        return dataclasses.replace(record, keys={**record.keys, "evaluation": min(options[0])})

    return [fill(record) for record in records]


def _related_run_keys(record: RunRecord) -> list[tuple[object, ...]]:
    """Returns what a run shares with its replicates, with its plan and with runs of its cost."""
    keys, study = _key_values(record, excluded_key="evaluation"), record.study
    plan = [("plan", study.plan, *keys)] if study.plan else []
    return [
        ("replicate", record.identity, record.name, *keys),
        *plan,
        ("cost", study.axis, study.value, *keys),
    ]


def _key_values(record: RunRecord, excluded_key: str = "") -> list[str]:
    return [record.keys[key] for key in COMPARABILITY_KEYS if key != excluded_key]


def _make_comparable_set(
    records: Sequence[RunRecord], all_records: Sequence[RunRecord]
) -> ComparableSet:
    first = records[0]
    # Where the direction is unknown, no row of the set is ranked.
    direction = metric_direction(first.metric, first.study) or "lower"
    metric = MetricSpec(_metric_unit(first.metric), better=direction)
    groups = [
        group._replace(rows=tuple(with_study_costs(group.rows, all_records)))
        for group in _with_pareto(make_groups(records, metric), metric)
    ]
    across = compare_groups(groups, metric, first.metric)
    return ComparableSet(first.keys, metric, first.metric, tuple(groups), across)


def _with_pareto(groups: Sequence[Group], metric: MetricSpec) -> list[Group]:
    """Returns the groups with the costs at which each row is on the Pareto front of the set."""
    rows = [row for g in groups for row in g.rows if row.sample.mean is not None]
    fronts: dict[int, list[str]] = {}
    for cost, label in PARETO_COSTS.items():
        points = [
            (r.costs[cost], sort_key(r.sample, metric)[0], r)
            for r in rows
            if _is_pareto_candidate(r, cost)
        ]
        best: dict[str, float] = {}  # Best quality so far, by platform where the cost is time.
        for _, quality, row in sorted(points, key=lambda p: (*p[:2], p[2].name)):
            platform = row.platform if cost == "seconds" else ""
            if quality < best.get(platform, math.inf):
                best[platform] = quality
                fronts.setdefault(id(row), []).append(label)
    return [
        group._replace(
            rows=tuple(
                dataclasses.replace(row, pareto=tuple(fronts.get(id(row), ())))
                for row in group.rows
            )
        )
        for group in groups
    ]


def _is_pareto_candidate(row: BoardRow, cost: str) -> bool:
    is_valid = not row.first_run.external_source and not any(run.exclusions for run in row.runs)
    is_valid &= not metric_problem(row.first_run.metric, row.first_run.study)
    return is_valid and cost in row.costs and (cost != "seconds" or bool(row.platform))


def _incomparable_reasons(sets: Sequence[ComparableSet]) -> Iterable[str]:
    """Yields how each further set differs from the first one."""
    for number, comparable_set in enumerate(sets[1:], 2):
        keys = sets[0].keys
        differences = [
            _describe_difference(key, keys[key], comparable_set.keys[key])
            for key in keys
            if keys[key] != comparable_set.keys[key]
        ]
        if not differences:
            axes = {s.rows[0].first_run.study.axis for s in (sets[0], comparable_set)}
            differences = ["the matched axis" if len(axes) > 1 else "the better direction"]
        yield f"set {number} differs from set 1 in {', '.join(differences)}"


def _describe_difference(key: str, value: str, other: str) -> str:
    """Returns the label of a comparability key; of an evaluation, the part of a split by name."""
    is_part = key == "evaluation" and part_difference(value, other)
    return is_part or key_label(key)


def _metric_unit(metric: str) -> str:
    return metric.rpartition("/")[2].replace("_", " ") or "no metric"
