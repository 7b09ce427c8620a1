"""A row of the board: the runs of one candidate, pooled over seeds, and why it is not ranked."""

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from formatting import format_scientific
from protocol.board.columns import AXIS_COLUMN_ALIASES, COLUMNS, pluralize
from protocol.records.metrics import metric_problem
from protocol.records.run_record import RunRecord
from protocol.records.safe_read import sanitize
from protocol.statistics.hypothesis_tests import Interval
from protocol.statistics.verdict import MIN_RANKED_RUNS, CandidateSample
from settings.types import did_you_mean

TOLERANCE = 0.01  # Relative difference within which matched costs agree.
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
    rank: int | None = None
    pareto: tuple[str, ...] = ()  # Costs at which no other row is both better and cheaper.
    data_agreement: str = ""  # Steps up to which the first row saw the same batches.

    @property
    def problems(self) -> tuple[str, ...]:
        """All reasons why the row is not ranked."""
        return (*self.exclusions, self.too_few_runs) if self.too_few_runs else self.exclusions

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
    runs, notes = _dedupe_seeds(records)
    ended = [r for r in runs if r.state in ("finished", "diverged")]
    values = tuple(r.value for r in ended if r.value is not None and r.state == "finished")
    n_diverged = sum(r.state == "diverged" for r in ended)
    n_declared, n_missing = _count_declared_seeds(runs)
    planned = len(values) + n_diverged + n_missing
    sample = CandidateSample(name, values, n_diverged, runs[0].identity, planned)
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
    pooled = [key for key in names if len({r.scores[key][1] for r in runs if key in r.scores}) == 1]
    notes += [f"{key} was evaluated by several versions" for key in names if key not in pooled]
    scores = _means(({k: v for k, (v, _) in r.scores.items()} for r in runs), pooled)
    return BoardRow(
        *(name, tuple(runs), sample, costs, scores),
        exclusions=tuple(_exclusions(runs, sample, costs)),
        too_few_runs=_too_few_runs(sample, n_declared, n_missing),
        notes=tuple(notes),
    )


def _end_reason(message: str) -> str:
    """Returns the first sentence of the message of an error, without the class of the error."""
    return ERROR_CLASS.sub("", message).partition(". ")[0].rstrip(". ")


def _dedupe_seeds(records: Sequence[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """Returns one run for each seed, with a note on repeated ones; a diverged run has priority."""
    selected: dict[object, RunRecord] = {}
    for record in sorted(records, key=lambda r: (STATE_ORDER[r.state], r.folder)):
        selected.setdefault(record.run_id if record.seed is None else record.seed, record)
    n_repeated = len(records) - len(selected)
    notes = []
    if n_repeated:
        verb = "repeats a seed and is" if n_repeated == 1 else "repeat a seed and are"
        notes.append(f"{pluralize(n_repeated, 'run')} {verb} not counted")
    return sorted(selected.values(), key=lambda r: (r.seed or 0, r.folder, r.run_id)), notes


def _count_declared_seeds(runs: Sequence[RunRecord]) -> tuple[int, int]:
    """Returns the number of declared seeds, and how many of them have no result."""
    declared = {seed for run in runs for seed in run.study.seeds}
    ended = {run.seed for run in runs if run.state == "diverged" or run.value is not None}
    return len(declared), len(declared - ended)


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
    if abs(actual / value - 1) <= (TIME_TOLERANCE if column == "seconds" else TOLERANCE):
        return ""
    return (
        f"its {axis} is {format_scientific(actual)}, {actual / value:.3g} times "
        f"the declared {format_scientific(value)}"
    )


def _too_few_runs(sample: CandidateSample, n_declared: int, n_missing: int) -> str:
    if sample.n_diverged:
        return (
            f"{sample.n_diverged} of {sample.n_runs} runs diverged, so it has a rate instead of a "
            "mean"
        )
    if n_missing:
        return f"{n_declared - n_missing} of {n_declared} declared seeds have ended"
    return f"n={sample.n_runs}; a rank needs at least {MIN_RANKED_RUNS} runs" * (
        0 < sample.n_runs < MIN_RANKED_RUNS
    )


def distinct_names(candidates: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Returns a unique name for each candidate, with the settings in which equal names differ."""
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
        name = base = sanitize(" ".join([record.name, *settings]), 100)
        number = 1
        while name in names:
            number += 1
            name = f"{base} #{number}"
        names.append(name)
    return names


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
