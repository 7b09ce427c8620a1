"""A group: rows that cost the same, in their order, and what may be said of each pair.

Studies declare pairs of candidates; their union is judged, and nothing else. Where no study of the
group declares any, all pairs are judged, and called exploratory. A row that is barred has no say:
it neither draws the border of a group nor sets a margin nor counts as a comparison.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from protocol import curves
from protocol.curves import Curve
from protocol.declared import Study, counted
from protocol.records import Record
from protocol.rows import FOUND, TOLERANCE, Row, names, pooled
from protocol.verdict import Metric, Sample, Verdict, judged, ranks

MOST_RANKED = 40  # candidates of a group; among more nobody has declared the comparisons

Names = list[tuple[str, str]]


class Pairs(NamedTuple):
    """Pairs of rows, by name."""

    firm: Names  # declared
    loose: Names  # to explore
    rest: Names  # with rows of too few runs, for the sentence
    within: Mapping[frozenset[str], float]  # margins of the declared

    def margins(self, pairs: Names) -> list[float]:
        return [self.within.get(frozenset(pair), 0.0) for pair in pairs]


class Group(NamedTuple):
    """Rows with one value of what is matched, in their order."""

    axis: str
    declared: bool  # the axis
    value: float | None
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    refusals: tuple[str, ...]
    curves: tuple[Curve, ...] = ()  # of candidates whose rows are sizes of an isoFLOP study

    @property
    def explored(self) -> bool:
        """Whether what is said of its rows was not declared before they ran."""
        declared = any(v.declared for v in self.verdicts)
        return not self.declared or bool(self.verdicts) and not declared


def grouped(records: Sequence[Record], metric: Metric) -> list[Group]:
    """The groups of a family, by value; rows whose value nobody knows are the last."""
    return [_group(value, members, metric) for value, members in _by_value(records)]


def order(sample: Sample, metric: Metric) -> tuple[float, str]:
    """The best first, then what has no mean."""
    if sample.mean is None:
        return math.inf, sample.name
    return sample.mean if metric.better == "lower" else -sample.mean, sample.name


def _by_value(records: Sequence[Record]) -> list[tuple[float | None, list[Record]]]:
    """Records whose declared values agree, else whose training FLOPs do.

    Rows that can be ranked draw the borders, from the cheapest on. Then those of too few runs, at
    last those that are barred, join the nearest within the tolerance, or stand by themselves.
    """
    tiers: tuple[list[tuple[float, Record]], ...] = ([], [], [])
    unknown: list[Record] = []
    for (_, name, cost), runs in _candidates(records, _cost).items():
        row = pooled(name, runs)
        tier = tiers[2 if row.barred else 1 if row.few else 0]
        if cost is None:
            unknown += runs
        else:
            tier += [(cost, run) for run in runs]
    clusters: list[tuple[float, list[Record]]] = []
    for tier in tiers:
        fresh: list[tuple[float, list[Record]]] = []
        for cost, record in sorted(tier, key=lambda item: item[0]):
            near = min(clusters, key=lambda c: abs(cost - c[0]), default=(math.inf, []))
            if abs(cost - near[0]) <= TOLERANCE * near[0] < math.inf:
                near[1].append(record)
            elif fresh and cost <= fresh[-1][0] * (1 + TOLERANCE):
                fresh[-1][1].append(record)
            else:
                fresh.append((cost, [record]))
        clusters += fresh
    known: list[tuple[float | None, list[Record]]] = [*sorted(clusters, key=lambda c: c[0])]
    return known + ([(None, unknown)] if unknown else [])


def _cost(record: Record) -> float | None:
    return record.study.value or None if record.study.axis else record.amounts.get(FOUND)


def _candidates(
    records: Sequence[Record], cost: Callable[[Record], float | None]
) -> dict[tuple[str, str, float | None], list[Record]]:
    """Runs that differ in nothing but the seed."""
    found: dict[tuple[str, str, float | None], list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.folder, r.run_id)):
        found.setdefault((record.identity, record.name, cost(record)), []).append(record)
    return found


def _group(value: float | None, records: Sequence[Record], metric: Metric) -> Group:
    axis = records[0].study.axis
    candidates = list(_candidates(records, lambda record: None).values())
    rows = [pooled(name, runs) for name, runs in zip(names(candidates), candidates, strict=True)]
    alone = [row for row in rows if not row.first.study.curve]
    verdicts, places, refusals = _judged(alone, metric)
    drawn = curves.drawn(rows, metric)
    verdicts += curves.verdicts(drawn, metric)
    refusals += [curve.refusal for curve in drawn if curve.refusal]
    rows = [dataclasses.replace(row, rank=places.get(row.name)) for row in rows]
    for row in rows:
        problems = row.barred if row.first.study.curve else row.problems
        refusals += [f"{row.name}: {problem}" for problem in problems]
    rows.sort(key=lambda row: (bool(row.problems), row.rank or 99, *order(row.sample, metric)))
    rows = [dataclasses.replace(row, same_data=_same_data(row, rows[0])) for row in rows]
    said = tuple(verdicts), tuple(refusals), tuple(drawn)
    return Group(axis or FOUND, bool(axis), value, tuple(rows), *said)


def _judged(
    rows: Sequence[Row], metric: Metric
) -> tuple[list[Verdict], dict[str, int | None], list[str]]:
    """The verdicts of a group, the ranks that follow, and what is not judged.

    Claims that were declared are adjusted among themselves. Rows that are not ranked are compared
    for the sentence: they must not make the adjustment of the others stricter.
    """
    able = sorted((row for row in rows if not row.barred), key=lambda r: order(r.sample, metric))
    sound = [row.name for row in able if not row.few]
    studies = list(dict.fromkeys(run.study for row in able for run in row.runs))
    declared = any(study.comparisons for study in studies)
    pairs = _declared(able, studies) if declared else _all(able)
    refusals = _refused(pairs, sound, declared and len(able) > 1)
    if max(len(pairs.firm), len(pairs.loose)) > math.comb(MOST_RANKED, 2):
        return [], {}, refusals

    def judge(those: Names, declared: bool, beside: int = 0) -> list[Verdict]:
        if not those:
            return []
        named = {name for pair in those for name in pair}
        samples = [row.sample for row in able if row.name in named]
        found = judged(samples, those, metric, beside=beside, margins=pairs.margins(those))
        return [dataclasses.replace(v, declared=declared) for v in found]

    count = counted(studies)
    firm = judge(pairs.firm, True, max(count - len(pairs.firm), 0))
    loose = judge(pairs.loose, False, max(count - len(pairs.loose), 0))
    compared = {name for pair in pairs.firm or pairs.loose for name in pair}
    places = ranks([row.sample for row in able if row.name in compared], firm or loose)
    return firm + loose + judge(pairs.rest, declared), places, refusals


def _all(rows: Sequence[Row]) -> Pairs:
    """All pairs; a row of too few runs with the first alone."""
    sound = [row.name for row in rows if not row.few]
    first, rest = [*sound, *(row.name for row in rows)][:1], {row.name for row in rows} - {*sound}
    told = [(name, row.name) for name in first for row in rows if row.name in rest - {name}]
    return Pairs([], list(itertools.combinations(sound, 2)), told, {})


def _declared(rows: Sequence[Row], studies: Sequence[Study]) -> Pairs:
    """The pairs that plans declare of candidates, as pairs of their rows.

    Where a candidate of a plan has several rows, nobody declared which of them is meant: then all
    are compared, which is exploratory.
    """
    called: dict[str, list[Row]] = {}
    planned: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        called.setdefault(row.candidate, []).append(row)
        for plan, name in dict.fromkeys((r.study.plan, r.study.candidate) for r in row.runs):
            planned.setdefault((plan, name), []).append(row)
    plans: dict[frozenset[str], dict[str, tuple[str, str]]] = {}
    limits: dict[frozenset[str], float] = {}
    for study in studies:
        for pair in study.comparisons:
            plans.setdefault(frozenset(pair), {})[study.plan] = pair
            limit = limits.get(frozenset(pair), math.inf)
            limits[frozenset(pair)] = min(limit, study.margin or 0.0)
    firm, loose, rest = (dict[frozenset[str], tuple[str, str]]() for _ in range(3))
    margins: dict[frozenset[str], float] = {}
    for both, found in plans.items():
        if len(both) < 2:
            continue
        meant = [[planned.get((plan, n), []) for n in pair] for plan, pair in found.items()]
        clear = [(x[0], y[0]) for x, y in meant if len(x) == len(y) == 1]
        a, b = (called.get(name, []) for name in [*found.values()][-1])
        few = [(x, y) for x in a for y in b[:1]] + [(x, y) for x in a[:1] for y in b]
        every = [(x, y) for x in a for y in b if not x.few and not y.few]
        for x, y in clear or [*every, *few]:
            names = frozenset((x.name, y.name))
            (rest if x.few or y.few else firm if clear else loose)[names] = x.name, y.name
            margins[names] = limits[both] if clear else 0.0
    return Pairs(list(firm.values()), list(loose.values()), list(rest.values()), margins)


def _refused(pairs: Pairs, sound: Sequence[str], declared: bool) -> list[str]:
    """Which comparisons of a group are not made, or not as they were declared."""
    every, many = math.comb(len(sound), 2), math.comb(MOST_RANKED, 2)
    if max(len(pairs.firm), len(pairs.loose)) > many:
        return [
            f"{len(sound)} candidates are not ranked, which takes a study of at most {MOST_RANKED} "
            f"candidates: nobody declares {len(pairs.firm or pairs.loose):,} comparisons"
        ]
    found = []
    if declared and pairs.loose:
        found = ["candidates have several rows here: nobody declared which of them are compared"]
    if declared and not pairs.firm and not pairs.loose:
        found = ["no declared comparison is between rows that may be ranked: nothing is judged"]
    elif declared and len(pairs.firm) + len(pairs.loose) < every:
        told = len(pairs.firm) + len(pairs.loose)
        found.append(f"{told} of {every} pairs were declared, and only those are judged")
    return found


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
