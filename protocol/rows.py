"""A row of the board: the runs of one candidate, pooled over seeds, and what bars a rank."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from protocol.columns import AXES, COLUMNS, scientific
from protocol.metrics import objection
from protocol.records import Record
from protocol.statistics import Interval
from protocol.untrusted import clean
from protocol.verdict import RANKED_RUNS, Sample
from schema import nearest

TOLERANCE = 0.01  # of what is matched
FOUND = "training_flops"  # the axis where none is declared
TIMING = 0.05  # where that is time
NAMES_APART = 3  # settings in a name that another row has too
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
    def candidate(self) -> str:
        """What its studies call it."""
        return next((run.study.candidate for run in self.runs if run.study.candidate), "")

    @property
    def machine(self) -> str:
        """What its seconds are of; blank if its runs were made on several."""
        found = {run.machine for run in self.runs if run.state == "finished"}
        return found.pop() if len(found) == 1 else ""

    @property
    def first(self) -> Record:
        return self.runs[0]

    @property
    def interval(self) -> Interval | None:
        return self.sample.interval


def pooled(name: str, records: Sequence[Record]) -> Row:
    runs, notes = _one_a_seed(records)
    counted = [r for r in runs if r.state in ("finished", "diverged")]
    values = tuple(r.value for r in counted if r.value is not None and r.state == "finished")
    diverged = sum(r.state == "diverged" for r in counted)
    declared, lacking = _declared_seeds(runs)
    planned = len(values) + diverged + lacking
    sample = Sample(name, values, diverged, runs[0].identity, planned)
    amounts = _means((r.amounts for r in runs if r.state == "finished"), COLUMNS)
    for state in ("failed", "unfinished"):
        if found := [r for r in runs if r.state == state]:
            why = next((f": {r.message}" for r in found if r.message), "")
            notes.append(f"{_runs(len(found))} {state}{why}")
    if unscored := len(counted) - sample.runs:
        notes.append(f"{_runs(unscored)} without a score of {runs[0].metric or 'any metric'}")
    notes += _differing(runs, "code", "versions of the code")
    notes += _differing(runs, "hardware", "kinds of hardware")
    notes += dict.fromkeys(note for run in runs for note in run.notes)
    if runs[0].study.refutes:
        notes.append(f"refutes: {runs[0].study.refutes}")
    every = sorted({key for r in runs for key in r.scores})
    kept = [key for key in every if len({r.scores[key][1] for r in runs if key in r.scores}) == 1]
    notes += [f"{key} was judged by several versions" for key in every if key not in kept]
    scores = _means(({k: v for k, (v, _) in r.scores.items()} for r in runs), kept)
    return Row(
        *(name, tuple(runs), sample, amounts, scores),
        barred=tuple(_barred(runs, sample, amounts)),
        few=_few(sample, declared, lacking),
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


def _declared_seeds(runs: Sequence[Record]) -> tuple[int, int]:
    """How many seeds its studies declare, and of how many of these there is no result."""
    declared = {seed for run in runs for seed in run.study.seeds}
    ended = {run.seed for run in runs if run.state == "diverged" or run.value is not None}
    return len(declared), len(declared - ended)


def _barred(runs: Sequence[Record], sample: Sample, amounts: Mapping[str, float]) -> list[str]:
    if runs[0].source:
        return [f"self-reported ({runs[0].source}): nothing here can check it"]
    found = list(dict.fromkeys(flag for run in runs for flag in run.flags))
    if not runs[0].metric:
        found.append("no metric is known for its objective, and its study declares none")
    elif not sample.runs:
        found.append("no run of it has ended")
    objections = (objection(run.metric, run.study) for run in runs if run.metric)
    found += dict.fromkeys(filter(None, objections))
    if why := _unmatched(runs, amounts):
        found.append(why)
    return found


def _unmatched(runs: Sequence[Record], amounts: Mapping[str, float]) -> str:
    """Why nothing shows that it costs what the others do; blank if something does."""
    axis, value = runs[0].study.axis, runs[0].study.value
    if not axis:
        known = any(FOUND in run.amounts for run in runs)
        return "" if known else "no axis was declared, and its training FLOPs are not known"
    column = AXES.get(axis, axis)
    if column not in COLUMNS:
        return f"its study declares the axis {axis}, which is none; {nearest(axis, COLUMNS)}"
    if not value:
        return f"its study declares the axis {axis} without its value"
    if not any(run.state == "finished" for run in runs):
        return ""  # a diverged run has no end to measure
    if (actual := amounts.get(column)) is None:
        return f"its {axis} is not known, so nothing shows that it is the declared one"
    if abs(actual / value - 1) <= (TIMING if column == "seconds" else TOLERANCE):
        return ""
    return (
        f"not comparable: its {axis} are {scientific(actual)}, {actual / value:.3g} of the "
        f"declared {scientific(value)}"
    )


def _few(sample: Sample, declared: int, lacking: int) -> str:
    if sample.diverged:
        return f"{sample.diverged} of {sample.runs} runs diverged: it has a rate, no mean"
    if lacking:
        return f"{declared - lacking} of {declared} declared seeds have ended"
    return f"n={sample.runs}, and a rank takes {RANKED_RUNS} runs" * (0 < sample.runs < RANKED_RUNS)


def names(candidates: Sequence[Sequence[Record]]) -> list[str]:
    """Names that tell candidates apart: by the settings in which those of one name differ."""
    records = [runs[0] for runs in candidates]
    found: list[str] = []
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
        while name in found:
            number += 1
            name = f"{wanted} #{number}"
        found.append(name)
    return found


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
