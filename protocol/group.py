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

from protocol.declared import Study
from protocol.records import Record
from protocol.rows import FOUND, TOLERANCE, Row, names, pooled
from protocol.verdict import Metric, Sample, Verdict, judged, ranks

MOST_RANKED = 40  # candidates of a group; among more nobody has declared the comparisons

Pairs = list[tuple[str, str]]


class Group(NamedTuple):
    """Rows with one value of what is matched, in their order."""

    axis: str
    declared: bool  # the axis
    value: float | None
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    refusals: tuple[str, ...]

    @property
    def explored(self) -> bool:
        """Whether what is said of its rows was not declared before they ran."""
        return not self.declared or any(not v.declared for v in self.verdicts)


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
    verdicts, places, refusals = _judged(rows, metric)
    rows = [dataclasses.replace(row, rank=places.get(row.name)) for row in rows]
    refusals += [f"{row.name}: {problem}" for row in rows for problem in row.problems]
    rows.sort(key=lambda row: (bool(row.problems), row.rank or 99, *order(row.sample, metric)))
    rows = [dataclasses.replace(row, same_data=_same_data(row, rows[0])) for row in rows]
    return Group(axis or FOUND, bool(axis), value, tuple(rows), tuple(verdicts), tuple(refusals))


def _judged(
    rows: Sequence[Row], metric: Metric
) -> tuple[list[Verdict], dict[str, int | None], list[str]]:
    """The verdicts of a group, the ranks that follow, and what is not judged.

    Rows that are not ranked are compared for the sentence: they must not make the adjustment of the
    others stricter.
    """
    able = sorted((row for row in rows if not row.barred), key=lambda r: order(r.sample, metric))
    samples = [row.sample for row in able]
    sound = [row.name for row in able if not row.few]
    if len(sound) > MOST_RANKED:
        count = math.comb(len(sound), 2)
        most = f"of at most {MOST_RANKED} candidates: nobody declares {count:,} comparisons"
        return [], {}, [f"{len(sound)} candidates are not ranked, which takes a study {most}"]
    studies = list(dict.fromkeys(run.study for row in able for run in row.runs))
    declared = any(study.comparisons for study in studies)
    margins = _margins(studies)
    if declared:
        firm, rest = _declared(able, studies)
    else:
        firm, first = (
            list(itertools.combinations(sound, 2)),
            [*sound, *(s.name for s in samples)][:1],
        )
        rest = [(name, s.name) for name in first for s in samples if s.name not in {*sound, name}]
    called = {row.name: row.candidate for row in able}
    verdicts: list[Verdict] = []
    places: dict[str, int | None] = {}
    if firm:
        within = [margins.get(frozenset(called[n] for n in pair), 0.0) for pair in firm]
        beside = max(_count(studies) - len(firm), 0)
        verdicts = judged(samples, firm, metric, beside=beside, margins=within)
        compared = {name for pair in firm for name in pair}
        places = {k: v for k, v in ranks(samples, verdicts).items() if k in compared}
    if rest:
        verdicts += judged(samples, rest, metric)
    verdicts = [dataclasses.replace(v, declared=declared) for v in verdicts]
    every = math.comb(len(sound), 2)
    refusals = []
    if declared and not firm and len(able) > 1:
        refusals = ["no declared comparison is between rows that may be ranked: nothing is judged"]
    elif len(firm) < every:
        refusals = [f"{len(firm)} of {every} pairs were declared, and only those are judged"]
    return verdicts, places, refusals


def _declared(rows: Sequence[Row], studies: Sequence[Study]) -> tuple[Pairs, Pairs]:
    """The declared pairs of candidates as pairs of rows: those to judge, and for rows of too few
    runs one each, for the sentence.

    A candidate may have several rows, as at several sizes: then each of them is compared.
    """
    called: dict[str, list[Row]] = {}
    for row in rows:
        called.setdefault(row.candidate, []).append(row)
    firm: dict[frozenset[str], tuple[str, str]] = {}
    rest: dict[frozenset[str], tuple[str, str]] = {}
    pairs = {frozenset(pair): pair for study in studies for pair in study.comparisons}
    for a, b in (pair for both, pair in pairs.items() if len(both) == 2):
        ours, theirs = called.get(a, []), called.get(b, [])
        for x, y in itertools.product(*([r for r in rs if not r.few] for rs in (ours, theirs))):
            firm[frozenset((x.name, y.name))] = x.name, y.name
        found = [(x, y) for x in ours for y in theirs[:1]] + [
            (x, y) for x in ours[:1] for y in theirs
        ]
        for x, y in found:
            if x.few or y.few:
                rest[frozenset((x.name, y.name))] = x.name, y.name
    return list(firm.values()), list(rest.values())


def _count(studies: Sequence[Study]) -> int:
    """Comparisons that the plans declare, together."""
    plans: dict[str, int] = {}
    for study in studies:
        plans[study.plan] = max(plans.get(study.plan, 0), study.declared)
    return sum(plans.values())


def _margins(studies: Sequence[Study]) -> dict[frozenset[str], float]:
    """Of the declared pairs of candidates; the smallest where studies disagree."""
    found: dict[frozenset[str], float] = {}
    for study in studies:
        for pair in map(frozenset, study.comparisons):
            found[pair] = min(found.get(pair, math.inf), study.margin or 0.0)
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
