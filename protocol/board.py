"""The board: records grouped so that only like is ranked with like, and what may be said of each.

A pure function of records. A *family* holds rows that agree in all keys of the protocol (item 14);
its *groups* agree in what was matched too, and only inside a group is anything ranked. Where no
axis was declared, rows whose training FLOPs agree within 1 % form a group, called exploratory.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from protocol.columns import COLUMNS, FRONTS, scientific
from protocol.records import Record, Unreadable, higher_is_better
from protocol.statistics import Interval
from protocol.untrusted import clean
from protocol.verdict import RANKED_RUNS, Metric, Sample, Verdict, judged, ranks

Better = Literal["lower", "higher"]
TOLERANCE = 0.01  # of what is matched
MOST_RANKED = 40  # candidates of a group; among more nobody has declared the comparisons
NAMES_APART = 3  # settings in a name that another row has too
FOUND = "training_flops"  # the axis where none is declared
AXES = {"wall_clock": "seconds", "time": "seconds"}  # axes that a column names otherwise
STATES = {"diverged": 0, "finished": 1, "failed": 2, "unfinished": 3}


@dataclasses.dataclass(frozen=True)
class Row:
    """A candidate: runs that differ in nothing but the seed."""

    name: str
    runs: tuple[Record, ...]
    sample: Sample
    amounts: Mapping[str, float]  # means over runs
    scores: Mapping[str, float]
    barred: tuple[str, ...]  # why it is compared with nothing
    few: str = ""  # why it is compared, but not ranked
    notes: tuple[str, ...] = ()
    rank: int | None = None
    fronts: tuple[str, ...] = ()  # costs at which nothing here is both better and cheaper
    same_data: str = ""

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it is not ranked."""
        return (*self.barred, self.few) if self.few else self.barred

    @property
    def first(self) -> Record:
        return self.runs[0]

    @property
    def interval(self) -> Interval | None:
        return self.sample.interval


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
    reported = [r for r in every if r.study.role != "tuning"]
    families: dict[tuple[str, ...], list[Record]] = {}
    for record in reported:
        families.setdefault((*record.keys.values(), record.study.axis), []).append(record)
    found = [_family(members) for members in families.values()]
    found.sort(key=lambda family: (-len(family.rows), list(family.keys.values())))
    apart = tuple(_apart(found))
    return Board(tuple(found), apart, len(every) - len(reported), tuple(sorted(unreadable)))


def _family(records: Sequence[Record]) -> Family:
    first = records[0]
    better: Better = "higher" if higher_is_better(first.metric) else "lower"
    margin = max((r.study.margin or 0.0 for r in records), default=0.0)
    metric = Metric(_unit(first.metric), margin, better)
    groups = [_group(value, members, metric) for value, members in _by_value(records)]
    groups = _with_fronts(groups, metric)
    return Family(first.keys, metric, first.metric, tuple(groups))


def _by_value(records: Sequence[Record]) -> list[tuple[float | None, list[Record]]]:
    """Records by the declared value, else by training FLOPs that agree."""
    if records[0].study.axis:
        values = sorted({r.study.value for r in records if r.study.value is not None})
        found = [(v, [r for r in records if r.study.value == v]) for v in (*values, None)]
        return [(value, members) for value, members in found if members]
    priced = [(r.amounts[FOUND], r) for r in records if FOUND in r.amounts]
    clusters: list[tuple[float | None, list[Record]]] = []
    for cost, record in sorted(priced, key=lambda item: item[0]):
        if clusters and cost <= (clusters[-1][0] or 0.0) * (1 + TOLERANCE):
            clusters[-1][1].append(record)
        else:
            clusters.append((cost, [record]))
    rest = [r for r in records if FOUND not in r.amounts]
    return clusters + ([(None, rest)] if rest else [])


def _group(value: float | None, records: Sequence[Record], metric: Metric) -> Group:
    axis = records[0].study.axis
    candidates: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.folder, r.run_id)):
        candidates.setdefault((record.identity, record.name), []).append(record)
    names = _names(list(candidates.values()))
    members = zip(names, candidates.values(), strict=True)
    rows = [_row(name, runs, value if axis else None) for name, runs in members]
    verdicts, places, refusals = _judged(rows, metric)
    rows = [dataclasses.replace(row, rank=places.get(row.name)) for row in rows]
    refusals += [f"{row.name}: {problem}" for row in rows for problem in row.problems]
    rows.sort(key=lambda row: (bool(row.problems), row.rank or 99, *_order(row.sample, metric)))
    rows = [dataclasses.replace(row, same_data=_same_data(row, rows[0])) for row in rows]
    return Group(axis or FOUND, bool(axis), value, tuple(rows), tuple(verdicts), tuple(refusals))


def _judged(
    rows: Sequence[Row], metric: Metric
) -> tuple[list[Verdict], dict[str, int | None], list[str]]:
    """All comparisons of a group, and the ranks that follow.

    Rows of too few runs are compared with the first one only, for the sentence: they must not make
    the adjustment of the others stricter.
    """
    samples = sorted((r.sample for r in rows if not r.barred), key=lambda s: _order(s, metric))
    sound = [s.name for s in samples if s.runs >= RANKED_RUNS and not s.diverged]
    if len(sound) > MOST_RANKED:
        pairs = math.comb(len(sound), 2)
        most = f"of at most {MOST_RANKED} candidates: nobody declares {pairs:,} comparisons"
        return [], {}, [f"{len(sound)} candidates are not ranked, which takes a study {most}"]
    verdicts: list[Verdict] = []
    if len(sound) > 1:
        verdicts = judged(samples, list(itertools.combinations(sound, 2)), metric)
    places = ranks(samples, verdicts) if len(sound) > 1 else {}
    first = sound[0] if sound else samples[0].name if samples else ""
    if rest := [(first, s.name) for s in samples if s.name not in {*sound, first}]:
        verdicts += judged(samples, rest, metric)
    return verdicts, places, []


def _order(sample: Sample, metric: Metric) -> tuple[float, str]:
    if sample.mean is None:
        return math.inf, sample.name
    return sample.mean if metric.better == "lower" else -sample.mean, sample.name


def _row(name: str, records: Sequence[Record], value: float | None) -> Row:
    runs, notes = _one_a_seed(records)
    counted = [r for r in runs if r.state in ("finished", "diverged")]
    values = tuple(r.value for r in counted if r.value is not None and r.state == "finished")
    diverged = sum(r.state == "diverged" for r in counted)
    sample = Sample(name, values, diverged, runs[0].identity)
    amounts = _means((r.amounts for r in runs if r.state == "finished"), COLUMNS)
    for state in ("failed", "unfinished"):
        if found := [r for r in runs if r.state == state]:
            why = next((f": {r.message}" for r in found if r.message), "")
            notes.append(f"{_runs(len(found))} {state}{why}")
    if unscored := len(counted) - sample.runs:
        notes.append(f"{_runs(unscored)} without a score of {runs[0].metric or 'any metric'}")
    notes += _differing(runs, "code", "versions of the code")
    notes += _differing(runs, "hardware", "kinds of hardware")
    if runs[0].study.refutes:
        notes.append(f"refutes: {runs[0].study.refutes}")
    names = sorted({key for r in runs for key in r.scores})
    kept = [key for key in names if len({r.scores[key][1] for r in runs if key in r.scores}) == 1]
    notes += [f"{key} was judged by several versions" for key in names if key not in kept]
    scores = _means(({k: v for k, (v, _) in r.scores.items()} for r in runs), kept)
    return Row(
        *(name, tuple(runs), sample, amounts, scores),
        barred=tuple(_barred(runs, sample, amounts, value)),
        few=_few(sample),
        notes=tuple(notes),
    )


def _one_a_seed(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """A seed run twice is one run; if it diverged once, it diverged."""
    chosen: dict[object, Record] = {}
    for record in sorted(records, key=lambda r: (STATES[r.state], r.folder)):
        chosen.setdefault(record.run_id if record.seed is None else record.seed, record)
    twice = len(records) - len(chosen)
    notes = [f"{_runs(twice)} of a seed that is there already, not counted"] if twice else []
    return sorted(chosen.values(), key=lambda r: (r.seed or 0, r.folder, r.run_id)), notes


def _barred(
    runs: Sequence[Record], sample: Sample, amounts: Mapping[str, float], value: float | None
) -> list[str]:
    if runs[0].source:
        return [f"self-reported ({runs[0].source}): nothing here can check it"]
    found = list(dict.fromkeys(flag for run in runs for flag in run.flags))
    if not runs[0].metric:
        found.append("no metric is known for its objective, and its study declares none")
    elif not sample.runs:
        found.append("no run of it has ended")
    axis = runs[0].study.axis
    actual = amounts.get(AXES.get(axis, axis))
    if value and actual is not None and abs(actual / value - 1) > TOLERANCE:
        found.append(
            f"not comparable: its {axis} are {scientific(actual)}, {actual / value:.3g} of the "
            f"declared {scientific(value)}"
        )
    return found


def _few(sample: Sample) -> str:
    if sample.diverged:
        return f"{sample.diverged} of {sample.runs} runs diverged: it has a rate, no mean"
    return f"n={sample.runs}, and a rank takes {RANKED_RUNS} runs" * (0 < sample.runs < RANKED_RUNS)


def _names(candidates: Sequence[Sequence[Record]]) -> list[str]:
    """Names that tell candidates apart: by the settings in which those of one name differ."""
    records = [runs[0] for runs in candidates]
    names: list[str] = []
    apart_by: dict[str, list[str]] = {}
    for name in {record.name for record in records}:
        twins = [r.settings for r in records if r.name == name]
        keys = sorted({key for settings in twins for key in settings} if len(twins) > 1 else ())
        apart_by[name] = [k for k in keys if len({s.get(k) for s in twins}) > 1][:NAMES_APART]
    for record in records:
        apart = [
            f"{key.split('.')[-1]}={record.settings.get(key)}" for key in apart_by[record.name]
        ]
        name = wanted = clean(" ".join([record.name, *apart]), 100)
        number = 1
        while name in names:
            number += 1
            name = f"{wanted} #{number}"
        names.append(name)
    return names


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


def _means(tables: Iterable[Mapping[str, float]], names: Iterable[str]) -> dict[str, float]:
    """Of what is there; infinite numbers are left out."""
    every = list(tables)
    found = {}
    for name in names:
        values = [t[name] for t in every if name in t and math.isfinite(t[name])]
        if values:
            found[name] = statistics.fmean(values)
    return found


def _differing(runs: Sequence[Record], field: str, what: str) -> list[str]:
    values = {{"code": run.code, "hardware": run.hardware}[field] for run in runs}
    return [f"{len(values)} {what}"] if len(values) > 1 else []


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _unit(metric: str) -> str:
    return metric.rpartition("/")[2].replace("_", " ") or "no metric"
