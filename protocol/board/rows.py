"""A row of the board: the runs of one candidate, pooled over seeds, and why it is not ranked."""

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from formatting import format_scientific
from protocol.board.baselines import bigram_problem
from protocol.board.columns import AXIS_COLUMN_ALIASES, COLUMNS, TIME_COLUMNS, pluralize
from protocol.records.metrics import metric_problem
from protocol.records.run_record import RunRecord
from protocol.records.safe_read import sanitize
from protocol.records.series import VALIDATION_PREFIX
from protocol.statistics.hypothesis_tests import Interval
from protocol.statistics.ranks import RankInterval
from protocol.statistics.sample import MIN_RANKED_RUNS, CandidateSample
from settings.types import did_you_mean

TOLERANCE = 0.01  # Relative difference within which matched costs agree.
VALUE_TOLERANCE = 1e-6  # Relative difference within which two results of a seed agree.
MAX_PLANS = 1_000_000  # Above the place of any plan in plan.json.
TIME_TOLERANCE = 0.05  # The same, where the matched cost is time.
DEFAULT_AXIS = "training_flops"  # The axis where none is declared.
MAX_NAME_SETTINGS = 3  # Settings that are added to a name which another row has too.
ERROR_CLASS = re.compile(r"^[\w.]*(Error|Exception|Exit|Interrupt):\s*")
STATE_ORDER = {"diverged": 0, "finished": 1, "failed": 2, "unfinished": 3}


@dataclasses.dataclass(frozen=True)
class BoardRow:
    """Runs that differ only in their seed."""

    name: str
    runs: tuple[RunRecord, ...]
    sample: CandidateSample
    costs: Mapping[str, float]  # Means over the finished runs, by column.
    scores: Mapping[str, float]
    exclusions: tuple[str, ...]  # Reasons why the row is compared with nothing.
    too_few_runs: str = ""  # Reason why the row is compared, but not ranked.
    notes: tuple[str, ...] = ()
    rank_interval: RankInterval | None = None  # None: the comparisons decide no ranks.
    # Place relative to the reference, where there are no ranks: above, below, ...
    standing: str = ""
    seed_problems: tuple[str, ...] = ()  # Seeds with several results.
    copy_of: str = ""  # Row of which this row is a copy; a copy has no rank.
    study_cost: str = ""  # What the whole study of the candidate cost, in words.
    pareto: tuple[str, ...] = ()  # Costs at which no other row is both better and cheaper.
    data_agreement: str = ""  # Steps up to which the first row saw the same batches.

    @property
    def problems(self) -> tuple[str, ...]:
        """All reasons why the row is not ranked."""
        copy = f"it is a copy of {self.copy_of}, and no candidate" * bool(self.copy_of)
        return (*self.exclusions, *filter(None, (self.too_few_runs, copy)))

    @property
    def rank(self) -> int | None:
        """The rank, where the comparisons leave only one place."""
        return self.rank_interval.rank if self.rank_interval else None

    @property
    def is_ranked(self) -> bool:
        """Whether the row has a place among the others or relative to the reference."""
        return self.rank_interval is not None or bool(self.standing)

    @property
    def place_text(self) -> str:
        """The places that the row may have, else where it stands; blank if neither is known."""
        return self.standing if self.rank_interval is None else str(self.rank_interval)

    @property
    def candidate(self) -> str:
        """The name that its studies give the candidate."""
        return next((run.study.candidate for run in self.runs if run.study.candidate), "")

    @property
    def platform(self) -> str:
        """The platform on which its seconds were measured; blank if there were several."""
        platforms = {run.platform for run in self.runs if run.state == "finished"}
        return platforms.pop() if len(platforms) == 1 else ""

    @property
    def first_run(self) -> RunRecord:
        """The run with the lowest seed."""
        return self.runs[0]

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the mean score."""
        return self.sample.interval


def make_row(name: str, records: Sequence[RunRecord]) -> BoardRow:
    """Returns the row of records that differ only in their seed."""
    unique, repeated, notes = _dedupe_seeds(records)
    counted = counted_runs(unique)
    runs, n_declared, n_missing = counted.runs, counted.n_declared, counted.n_missing
    notes += filter(None, [counted.note])
    ended = [r for r in runs if r.state in ("finished", "diverged")]
    scored = [r for r in ended if r.value is not None and r.state == "finished"]
    n_diverged = sum(r.state == "diverged" for r in ended)
    sample = CandidateSample(
        name,
        tuple(r.value for r in scored if r.value is not None),
        n_diverged,
        runs[0].identity,
        planned_runs=len(scored) + n_diverged + n_missing,
        seeds=tuple(r.seed for r in scored if r.seed is not None),
    )
    costs = _means((r.costs for r in runs if r.state == "finished"), COLUMNS)
    for state in ("failed", "unfinished"):
        if members := [r for r in runs if r.state == state]:
            reason = next(filter(None, (_end_reason(r.error_message) for r in members)), "")
            suffix = f" ({reason})" if reason else ""
            notes.append(f"{pluralize(len(members), f'{state} run')}{suffix}")
    if unscored := len(ended) - sample.n_runs:
        metric = runs[0].metric or "any metric"
        notes.append(f"{pluralize(unscored, 'run')} without a score of {metric}")
    notes += _mixed_value_note([run.code_version for run in runs], "versions of the code")
    notes += _mixed_value_note([run.hardware for run in runs], "kinds of hardware")
    notes += dict.fromkeys(note for run in runs for note in run.notes)
    if runs[0].study.refutes:
        notes.append(f"refutes: {runs[0].study.refutes}")
    names = sorted({key for r in runs for key in r.scores})
    versions, parts = (
        {key: {values[key] for values in of_runs if key in values} for key in names}
        for of_runs in (
            [{key: version for key, (_, version) in r.scores.items()} for r in runs],
            [{key: r.parts.get(key, "") for key in r.scores} for r in runs],
        )
    )
    pooled = [key for key in names if len(versions[key]) == len(parts[key]) == 1]
    notes += [
        f"{key} was evaluated "
        + ("by several versions" if len(versions[key]) > 1 else "on several parts of its split")
        for key in names
        if key not in pooled
    ]
    scores = _means(({k: v for k, (v, _) in r.scores.items()} for r in runs), pooled)
    return BoardRow(
        *(name, tuple(runs), sample, costs, scores),
        exclusions=tuple([*repeated, *_exclusions(runs, sample, costs)]),
        too_few_runs=_too_few_runs(sample, n_declared, n_missing, bool(runs[0].study.isoflop_curve))
        or bigram_problem(scores, runs[0].metric, sample.mean),
        notes=tuple(notes),
        seed_problems=tuple(repeated),
    )


def _end_reason(message: str) -> str:
    """Returns the first sentence of the message of an error, without the class of the error."""
    return ERROR_CLASS.sub("", message).partition(". ")[0].rstrip(". ")


def _dedupe_seeds(records: Sequence[RunRecord]) -> tuple[list[RunRecord], list[str], list[str]]:
    """Returns one run for each seed, seeds with several results, and a note on repeated runs.

    A diverged run has priority. Of a seed with several results, none can be preferred.
    """
    by_seed: dict[object, list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: (STATE_ORDER[r.state], r.folder)):
        key = record.run_id if record.seed is None else record.seed
        by_seed.setdefault(key, []).append(record)
    contradictions = [
        problem for runs in by_seed.values() if (problem := _seed_problem(runs[0], runs[1:]))
    ]
    n_repeated = len(records) - len(by_seed)
    notes = []
    if n_repeated:
        verb = "repeats a seed and is" if n_repeated == 1 else "repeat a seed and are"
        notes.append(f"{pluralize(n_repeated, 'run')} {verb} not counted")
    unique = [runs[0] for runs in by_seed.values()]
    return sorted(unique, key=_seed_order), contradictions, notes


def _seed_problem(run: RunRecord, others: Sequence[RunRecord]) -> str:
    """Returns why the runs of a seed do not have one result; blank if they have."""
    for other in others:
        if run.value is None or other.value is None:
            continue
        if not math.isclose(run.value, other.value, rel_tol=VALUE_TOLERANCE):
            return (
                f"seed {run.seed} has two results, {run.value:.6g} ({run.folder}) and "
                f"{other.value:.6g} ({other.folder}), of which none can be preferred"
            )
    return ""


def _seed_order(run: RunRecord) -> tuple[int, int, str, str]:
    """Returns the key that sorts runs as their study declares the seeds, else by seed."""
    seeds, seed = run.study.seeds, run.seed or 0
    position = seeds.index(seed) if seed in seeds else len(seeds)
    return position, seed, run.folder, run.run_id


class CountedRuns(NamedTuple):
    """The runs of a row that count as declared."""

    runs: list[RunRecord]
    n_declared: int  # Seeds that the study declares, up to its last look that is complete.
    n_missing: int  # Declared seeds without a result.
    note: str = ""  # Which runs do not count.


def counted_runs(runs: Sequence[RunRecord]) -> CountedRuns:
    """Returns the runs that count as declared.

    If seeds were added after the first plan, only those of the first plan count: a study that is
    extended until it shows something finds something. A study that declares looks counts the runs
    up to the last look that is complete.
    """
    ended = {run.seed for run in runs if run.state == "diverged" or run.value is not None}
    plans: dict[tuple[int, ...], list[RunRecord]] = {}
    for run in runs:
        if run.study.plan and run.seed in run.study.seeds:
            plans.setdefault(run.study.seeds, []).append(run)
    if not plans:
        declared = {seed for run in runs for seed in run.study.seeds}
        return CountedRuns(list(runs), len(declared), len(declared - ended))
    first = min(plans, key=lambda seeds: (min(map(_plan_order, plans[seeds])), len(seeds), seeds))
    n_ended = next((n for n, seed in enumerate(first) if seed not in ended), len(first))
    complete = [look for look in plans[first][0].study.looks if look <= n_ended]
    seeds = first[: max(complete)] if complete else first
    counted = [run for run in runs if run.seed in seeds]
    added = sorted({run.seed for run in runs if run.seed is not None} - {*first})
    note = ""
    if added:
        note = (
            f"{pluralize(len(added), 'seed')} ({', '.join(map(str, added))}) added after the first "
            "plan, which alone counts as declared; declare looks to add seeds"
        )
    elif waiting := len({run.seed for run in runs} - {run.seed for run in counted}):
        note = f"{pluralize(waiting, 'run')} will count at the next look"
    return CountedRuns(counted, len(seeds), len({*seeds} - ended), note)


def _plan_order(run: RunRecord) -> tuple[int, str]:
    """Returns the key that sorts plans by age: their place in plan.json, then their first run."""
    return (run.plan.position if run.plan else MAX_PLANS), run.created


def _exclusions(
    runs: Sequence[RunRecord], sample: CandidateSample, costs: Mapping[str, float]
) -> list[str]:
    if runs[0].external_source:
        return [f"self-reported ({runs[0].external_source}): it cannot be checked here"]
    reasons = list(dict.fromkeys(reason for run in runs for reason in run.exclusions))
    if not runs[0].metric:
        reasons.append("its objective has no default metric, and its study declares none")
    elif not sample.n_runs:
        reasons.append("no run of it has ended")
    reasons += dict.fromkeys(
        f"self-reported: {run.folder} has no {run.evidence.missing}, so that nothing supports its "
        "score"
        for run in runs
        if run.evidence.missing
    )
    if runs[0].metric.startswith(VALIDATION_PREFIX):
        reasons.append(
            f"{runs[0].metric} is of the validation split, on which settings are chosen; claims "
            "are made on the test split"
        )
    problems = (metric_problem(run.metric, run.study) for run in runs if run.metric)
    reasons += dict.fromkeys(filter(None, problems))
    if mismatch := _axis_mismatch(runs, costs):
        reasons.append(mismatch)
    return reasons


def _axis_mismatch(runs: Sequence[RunRecord], costs: Mapping[str, float]) -> str:
    """Returns why the matched cost is not shown to be that of the group; blank if it is."""
    axis, value = runs[0].study.axis, runs[0].study.value
    if not axis:
        is_known = any(DEFAULT_AXIS in run.costs for run in runs)
        return "" if is_known else "no axis was declared, and its training FLOPs are unknown"
    column = AXIS_COLUMN_ALIASES.get(axis, axis)
    if column not in COLUMNS:
        return (
            f"its study declares the axis {axis}, which does not exist; "
            f"{did_you_mean(axis, COLUMNS)}"
        )
    if not value:
        return f"its study declares the axis {axis} without its value"
    if not any(run.state == "finished" for run in runs):
        return ""  # A diverged run has no costs of a whole training.
    if (actual := costs.get(column)) is None:
        return f"its {axis} is unknown and cannot be compared with the declared value"
    if abs(actual / value - 1) <= (TIME_TOLERANCE if column in TIME_COLUMNS else TOLERANCE):
        return ""
    return (
        f"its {axis} is {format_scientific(actual)}, {actual / value:.3g} times "
        f"the declared {format_scientific(value)}"
    )


def _too_few_runs(
    sample: CandidateSample, n_declared: int, n_missing: int, is_of_curve: bool
) -> str:
    if sample.n_diverged:
        return (
            f"{sample.n_diverged} of {sample.n_runs} runs diverged, so it has a rate instead of a "
            "mean"
        )
    if n_missing:
        return f"{n_declared - n_missing} of {n_declared} declared seeds have ended"
    if is_of_curve or not 0 < sample.n_runs < MIN_RANKED_RUNS:
        return ""  # A size of an isoFLOP curve has no rank, however many runs it has.
    return f"n={sample.n_runs}; a rank needs at least {MIN_RANKED_RUNS} runs"


def distinct_names(candidates: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Returns a unique name for each candidate, with the settings in which equal names differ.

    Runs without a study that differ in many settings, or in none that are shown, have the name of
    their folder.
    """
    records = [runs[0] for runs in candidates]
    names: list[str] = []
    differing: dict[str, list[str]] = {}
    for name in {record.name for record in records}:
        tables = [r.settings for r in records if r.name == name]
        keys = sorted({key for table in tables for key in table} if len(tables) > 1 else ())
        differing[name] = [k for k in keys if len({t.get(k) for t in tables}) > 1]
    for record in records:
        settings = [
            f"{key.split('.')[-1]}={record.settings.get(key)}"
            for key in differing[record.name][:MAX_NAME_SETTINGS]
        ]
        is_long = not 0 < len(differing[record.name]) <= MAX_NAME_SETTINGS
        if is_long and not record.study.candidate and _count(records, record.name) > 1:
            settings = [f"({Path(record.folder).name})"]
        name = base = sanitize(" ".join([record.name, *settings]), 100)
        number = 1
        while name in names:
            number += 1
            name = f"{base} #{number}"
        names.append(name)
    return names


def _count(records: Sequence[RunRecord], name: str) -> int:
    return sum(record.name == name for record in records)


def _means(tables: Iterable[Mapping[str, float]], names: Iterable[str]) -> dict[str, float]:
    """Returns the mean of each name over the tables that have it; infinite numbers are ignored."""
    table_list = list(tables)
    means = {}
    for name in names:
        values = [t[name] for t in table_list if name in t and math.isfinite(t[name])]
        if values:
            means[name] = statistics.fmean(values)
    return means


def _mixed_value_note(values: Sequence[str], noun: str) -> list[str]:
    count = len(set(values))
    return [f"{count} {noun}"] if count > 1 else []
