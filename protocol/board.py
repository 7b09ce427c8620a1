"""The board: records grouped so that only like is ranked with like, and what may be said of each.

A pure function of records. A *family* holds rows that agree in all keys of the protocol (item 14);
its *groups* agree in what was matched too, and only inside a group is anything ranked. Where no
axis was declared, rows whose training FLOPs agree within 1 % form a group, called exploratory.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from protocol.columns import FRONTS
from protocol.group import Group, grouped, order
from protocol.keys import KEYS, UNSCORED
from protocol.metrics import better, objection
from protocol.records import Record, Unreadable
from protocol.rows import Row
from protocol.verdict import Metric


class Family(NamedTuple):
    keys: Mapping[str, str]
    metric: Metric
    name: str  # of the metric
    groups: tuple[Group, ...]

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups for row in group.rows]


class Board(NamedTuple):
    families: tuple[Family, ...]
    apart: tuple[str, ...]  # which families are not ranked together, and why
    tuning: int  # runs that served to choose a setting
    unreadable: tuple[Unreadable, ...]


def board(records: Iterable[Record], unreadable: Iterable[Unreadable] = ()) -> Board:
    """The board of `records`; their order does not matter."""
    every = sorted(records, key=lambda r: (r.folder, r.run_id))
    reported = _judged_as_others([r for r in every if r.study.role != "tuning"])
    families: dict[tuple[str, ...], list[Record]] = {}
    for record in reported:
        way = better(record.metric, record.study) or ""
        families.setdefault((*_like(record), record.study.axis, way), []).append(record)
    found = [_family(members) for members in families.values()]
    found.sort(key=lambda family: (-len(family.rows), list(family.keys.values())))
    apart = tuple(_apart(found))
    return Board(tuple(found), apart, len(every) - len(reported), tuple(sorted(unreadable)))


def _judged_as_others(records: Sequence[Record]) -> list[Record]:
    """A run without a score would have been judged as the others: those that it is a replicate of,
    else those of its plan, else all of its kind and cost, if one evaluation judged them all."""
    judges: dict[tuple[object, ...], set[str]] = {}
    for record in records:
        if record.keys["evaluation"] != UNSCORED and not record.source:
            for kin in _kin(record):
                judges.setdefault(kin, set()).add(record.keys["evaluation"])

    def joined(record: Record) -> Record:
        found = [judges[kin] for kin in _kin(record) if kin in judges]
        if record.keys["evaluation"] != UNSCORED or not found or len(found[0]) > 1:
            return record
        return dataclasses.replace(record, keys={**record.keys, "evaluation": min(found[0])})

    return [joined(record) for record in records]


def _kin(record: Record) -> list[tuple[object, ...]]:
    """What a run shares with those that are judged as it is, closest first."""
    like, study = _like(record, without="evaluation"), record.study
    plan = [("plan", study.plan, *like)] if study.plan else []
    return [
        ("replicate", record.identity, record.name, *like),
        *plan,
        ("cost", study.axis, study.value, *like),
    ]


def _like(record: Record, without: str = "") -> list[str]:
    return [record.keys[key] for key in KEYS if key != without]


def _family(records: Sequence[Record]) -> Family:
    first = records[0]
    way = better(first.metric, first.study) or "lower"  # if nobody says, no row of it is ranked
    metric = Metric(_unit(first.metric), better=way)
    groups = _with_fronts(grouped(records, metric), metric)
    return Family(first.keys, metric, first.metric, tuple(groups))


def _with_fronts(groups: Sequence[Group], metric: Metric) -> list[Group]:
    """With the costs at which a row is on the Pareto front of its family."""
    rows = [row for g in groups for row in g.rows if row.sample.mean is not None]
    fronts: dict[int, list[str]] = {}
    for cost, label in FRONTS.items():
        points = [(r.amounts[cost], order(r.sample, metric)[0], r) for r in rows if _may(r, cost)]
        best: dict[str, float] = {}
        for _, quality, row in sorted(points, key=lambda p: (*p[:2], p[2].name)):
            where = row.machine if cost == "seconds" else ""
            if quality < best.get(where, math.inf):
                best[where] = quality
                fronts.setdefault(id(row), []).append(label)
    return [
        group._replace(
            rows=tuple(
                dataclasses.replace(row, fronts=tuple(fronts.get(id(row), ())))
                for row in group.rows
            )
        )
        for group in groups
    ]


def _may(row: Row, cost: str) -> bool:
    sound = not row.first.source and not any(run.flags for run in row.runs)
    sound &= not objection(row.first.metric, row.first.study)
    return sound and cost in row.amounts and (cost != "seconds" or bool(row.machine))


def _apart(families: Sequence[Family]) -> Iterable[str]:
    """Each family against the first: rows of different families are never ranked together."""
    for number, family in enumerate(families[1:], 2):
        keys = families[0].keys
        differ = [key for key in keys if keys[key] != family.keys[key]]
        if not differ:
            axes = {one.rows[0].first.study.axis for one in (families[0], family)}
            differ = ["what is matched" if len(axes) > 1 else "which way is better"]
        yield f"family {number} differs from family 1 in {', '.join(differ)}"


def _unit(metric: str) -> str:
    return metric.rpartition("/")[2].replace("_", " ") or "no metric"
