"""The board: records grouped so that only like is ranked with like, and what may be said of each.

A pure function of records. A *family* holds rows that agree in all keys of the protocol (item 14);
its *groups* agree in what was matched too, and only inside a group is anything ranked. Where no
axis was declared, rows whose training FLOPs agree within 1 % form a group, called exploratory.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from protocol.columns import FRONTS
from protocol.records import UNSCORED, Record, Unreadable, higher_is_better
from protocol.rows import TOLERANCE, Row, names, pooled
from protocol.verdict import RANKED_RUNS, Metric, Sample, Verdict, judged, ranks

Better = Literal["lower", "higher"]
MOST_RANKED = 40  # candidates of a group; among more nobody has declared the comparisons
FOUND = "training_flops"  # the axis where none is declared


class Group(NamedTuple):
    """Rows with one value of what is matched, in their order."""

    axis: str
    declared: bool
    value: float | None
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    refusals: tuple[str, ...]


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
        families.setdefault((*record.keys.values(), record.study.axis), []).append(record)
    found = [_family(members) for members in families.values()]
    found.sort(key=lambda family: (-len(family.rows), list(family.keys.values())))
    apart = tuple(_apart(found))
    return Board(tuple(found), apart, len(every) - len(reported), tuple(sorted(unreadable)))


def _judged_as_others(records: Sequence[Record]) -> list[Record]:
    """A run without a score belongs to the runs that it is a replicate of."""
    known: dict[tuple[str, ...], str] = {}
    for record in records:
        if record.keys["evaluation"] != UNSCORED:
            known.setdefault(_replicate(record), record.keys["evaluation"])
    return [
        dataclasses.replace(r, keys={**r.keys, "evaluation": known[_replicate(r)]})
        if r.keys["evaluation"] == UNSCORED and _replicate(r) in known
        else r
        for r in records
    ]


def _replicate(record: Record) -> tuple[str, ...]:
    keys = (text for key, text in record.keys.items() if key != "evaluation")
    return (record.identity, record.name, *keys)


def _family(records: Sequence[Record]) -> Family:
    first = records[0]
    better: Better = "higher" if higher_is_better(first.metric) else "lower"
    margin = max((r.study.margin or 0.0 for r in records), default=0.0)
    metric = Metric(_unit(first.metric), margin, better)
    groups = [_group(value, members, metric) for value, members in _by_value(records)]
    groups = _with_fronts(groups, metric)
    return Family(first.keys, metric, first.metric, tuple(groups))


def _by_value(records: Sequence[Record]) -> list[tuple[float | None, list[Record]]]:
    """Records whose declared values agree, else whose training FLOPs do."""
    declared = bool(records[0].study.axis)
    costs = [r.study.value if declared else r.amounts.get(FOUND) for r in records]
    priced = [(c, r) for c, r in zip(costs, records, strict=True) if c is not None]
    clusters: list[tuple[float | None, list[Record]]] = []
    for cost, record in sorted(priced, key=lambda item: item[0]):
        if clusters and cost <= (clusters[-1][0] or 0.0) * (1 + TOLERANCE):
            clusters[-1][1].append(record)
        else:
            clusters.append((cost, [record]))
    rest = [r for c, r in zip(costs, records, strict=True) if c is None]
    return clusters + ([(None, rest)] if rest else [])


def _group(value: float | None, records: Sequence[Record], metric: Metric) -> Group:
    axis = records[0].study.axis
    candidates: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.folder, r.run_id)):
        candidates.setdefault((record.identity, record.name), []).append(record)
    members = zip(names(list(candidates.values())), candidates.values(), strict=True)
    rows = [pooled(name, runs) for name, runs in members]
    verdicts, places, refusals = _judged(rows, metric)
    rows = [dataclasses.replace(row, rank=places.get(row.name)) for row in rows]
    refusals += [f"{row.name}: {problem}" for row in rows for problem in row.problems]
    rows.sort(key=lambda row: (bool(row.problems), row.rank or 99, *_order(row.sample, metric)))
    rows = [dataclasses.replace(row, same_data=_same_data(row, rows[0])) for row in rows]
    return Group(axis or FOUND, bool(axis), value, tuple(rows), tuple(verdicts), tuple(refusals))


def _judged(
    rows: Sequence[Row], metric: Metric
) -> tuple[list[Verdict], dict[str, int | None], list[str]]:
    """The declared comparisons of a group, else all, and the ranks that follow.

    Rows of too few runs are compared with the first one only, for the sentence: they must not make
    the adjustment of the others stricter.
    """
    samples = sorted((r.sample for r in rows if not r.barred), key=lambda s: _order(s, metric))
    sound = [s.name for s in samples if s.runs >= RANKED_RUNS and not s.diverged]
    if len(sound) > MOST_RANKED:
        count = math.comb(len(sound), 2)
        most = f"of at most {MOST_RANKED} candidates: nobody declares {count:,} comparisons"
        return [], {}, [f"{len(sound)} candidates are not ranked, which takes a study {most}"]
    verdicts: list[Verdict] = []
    refusals = []
    places: dict[str, int | None] = {}
    every = list(itertools.combinations(sound, 2))
    if pairs := _declared(rows, sound) or every:
        declared = max(row.first.study.declared for row in rows if row.name in sound)
        verdicts = judged(samples, pairs, metric, beside=max(declared - len(pairs), 0))
        compared = {name for pair in pairs for name in pair}
        places = {k: v for k, v in ranks(samples, verdicts).items() if k in compared}
    if 0 < len(pairs) < len(every):
        refusals = [f"{len(pairs)} of {len(every)} pairs were declared, and only those are judged"]
    first = sound[0] if sound else samples[0].name if samples else ""
    if rest := [(first, s.name) for s in samples if s.name not in {*sound, first}]:
        verdicts += judged(samples, rest, metric)
    return verdicts, places, refusals


def _declared(rows: Sequence[Row], sound: Sequence[str]) -> list[tuple[str, str]]:
    """The comparisons that the studies of the rows agree on, as far as their rows are here."""
    studies = {row.first.study.comparisons for row in rows if row.name in sound}
    if len(studies) != 1:
        return []
    pairs = {frozenset(pair): pair for pair in next(iter(studies)) if {*pair} <= {*sound}}
    return [pair for both, pair in pairs.items() if len(both) == 2]


def _order(sample: Sample, metric: Metric) -> tuple[float, str]:
    if sample.mean is None:
        return math.inf, sample.name
    return sample.mean if metric.better == "lower" else -sample.mean, sample.name


def _same_data(row: Row, other: Row) -> str:
    """Up to which step the runs of two rows saw the same batches, seed by seed; the worst seed."""
    if row is other:
        return "reference"
    theirs = {run.seed: run for run in other.runs}
    found = [
        (_agreed(run.hashes, theirs[run.seed].hashes), run.steps)
        for run in row.runs
        if run.seed in theirs and run.hashes and theirs[run.seed].hashes
    ]
    if not found:
        return ""
    worst, steps = min(found)
    return f"{worst:,} of {steps:,} steps" if worst >= 0 else "broken: hashes differ, then agree"


def _agreed(a: Mapping[int, str], b: Mapping[int, str]) -> int:
    """The last step up to which rolling hashes agree; -1 if they meet again, which none can."""
    same = [(step, a[step] == b[step]) for step in sorted(a.keys() & b.keys())]
    good = [step for step, equal in itertools.takewhile(lambda item: item[1], same)]
    if sum(equal for _, equal in same) > len(good):
        return -1
    return good[-1] if good else 0


def _with_fronts(groups: Sequence[Group], metric: Metric) -> list[Group]:
    """With the costs at which a row is on the Pareto front of its family."""
    rows = [row for g in groups for row in g.rows if row.sample.mean is not None]
    fronts: dict[int, list[str]] = {}
    for cost, label in FRONTS.items():
        points = [(r.amounts[cost], _order(r.sample, metric)[0], r) for r in rows if _may(r, cost)]
        best = math.inf
        for _, quality, row in sorted(points, key=lambda p: (*p[:2], p[2].name)):
            if quality < best:
                best = quality
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
    return cost in row.amounts and not row.first.source and not row.first.flags


def _apart(families: Sequence[Family]) -> Iterable[str]:
    """Each family against the first: rows of different families are never ranked together."""
    for number, family in enumerate(families[1:], 2):
        keys = families[0].keys
        differ = [key for key in keys if keys[key] != family.keys[key]] or ["what is matched"]
        yield f"family {number} differs from family 1 in {', '.join(differ)}"


def _unit(metric: str) -> str:
    return metric.rpartition("/")[2].replace("_", " ") or "no metric"
