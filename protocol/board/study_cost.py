"""What the whole study of a candidate cost: tuning, noise floor, failed runs, evaluation, results.

Earlier stages of the runs, such as pretraining before training on preferences, are stated one by
one. Evaluation is forward passes, and what tasks train: fine-tuning and capability probes.

A candidate that was tuned more cost more than its reported runs show. Tuning counts from the runs
in the folders, else from the costs that plan.json records of the sweep.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from formatting import format_scientific
from protocol.board.columns import format_joules, format_seconds, pluralize
from protocol.board.rows import BoardRow
from protocol.records.run_record import RunRecord
from protocol.records.study_record import TUNING
from protocol.records.tuning_record import BATCH_SIZE, DERIVED_SETTINGS

FORWARD_SHARE = 1 / 3  # Share of the forward pass in the FLOPs of training.
TUNED_SECTION = "optimizer."  # Settings that tuning runs may vary, whatever a study declares.

# Runs of one candidate at one size, whatever tuning varies: name, and settings without these.
CandidateKey = tuple[str, frozenset[tuple[str, str]]]


class CostPart(NamedTuple):
    """The cost of some runs of a study."""

    label: str  # What the runs are, as "tuning".
    n_runs: int
    flops: float
    seconds: float
    joules: float = 0.0  # Measured or estimated.


class StudyCost(NamedTuple):
    """The cost of all runs that a candidate needed."""

    parts: tuple[CostPart, ...]
    is_estimated: bool = False  # Whether joules of some runs are an estimate.
    absent_stages: tuple[str, ...] = ()  # Earlier stages whose runs are not in the folders.

    @property
    def flops(self) -> float:
        """Model FLOPs of all parts."""
        return sum(part.flops for part in self.parts)

    @property
    def seconds(self) -> float:
        """Seconds of all parts, without compilation."""
        return sum(part.seconds for part in self.parts)

    @property
    def joules(self) -> float:
        """Joules of all parts; 0 if they are unknown."""
        return sum(part.joules for part in self.parts)

    @property
    def text(self) -> str:
        """The total and its parts in words."""
        parts = [
            f"{pluralize(part.n_runs, f'{part.label} run')} {format_scientific(part.flops)}"
            if part.n_runs
            else f"{part.label} {format_scientific(part.flops)}"
            for part in self.parts
            if part.flops
        ]
        total = f"{format_scientific(self.flops)} FLOPs"
        if self.seconds:
            total += f" and {format_seconds(self.seconds)}"
        if self.joules:
            total += f", {'an estimated ' * self.is_estimated}{format_joules(self.joules)}"
        absent = f"; without the stages {', '.join(self.absent_stages)}, which are not here"
        return f"{total} ({', '.join(parts)}{absent * bool(self.absent_stages)})"


def with_study_costs(rows: Sequence[BoardRow], records: Sequence[RunRecord]) -> list[BoardRow]:
    """Returns the rows, each with the cost of its whole study.

    Args:
        rows: the rows of a board.
        records: all records, with those of tuning and of noise floors.
    """
    tuning: dict[CandidateKey, list[RunRecord]] = defaultdict(list)
    for record in records:
        if record.study.role == TUNING:
            tuning[_key(record)].append(record)
    stages = {
        (record.study.plan, _name(record.folder)): record
        for record in records
        if record.study.stage
    }
    result = []
    for row in rows:
        if not row.first_run.study.plan or row.first_run.external_source:
            result.append(row)  # It is not known which other runs it needed.
            continue
        cost = _study_cost(row, tuning.get(_key(row.first_run), []), stages)
        costs = dict(row.costs) | {"study_flops": cost.flops, "study_seconds": cost.seconds}
        if cost.joules:
            costs["study_joules"] = cost.joules
        result.append(dataclasses.replace(row, costs=costs, study_cost=cost.text))
    return result


def _key(record: RunRecord) -> CandidateKey:
    tuned = (TUNED_SECTION, *record.study.tuned_settings)
    if BATCH_SIZE in tuned:
        tuned += DERIVED_SETTINGS
    fixed = frozenset(item for item in record.settings.items() if not item[0].startswith(tuned))
    return record.study.candidate or record.name, fixed


def _study_cost(
    row: BoardRow, tuning: Sequence[RunRecord], stages: Mapping[tuple[str, str], RunRecord]
) -> StudyCost:
    """Returns the cost of a row, of its tuning, and of the stages that these start from."""
    by_stage: dict[str, list[RunRecord]] = defaultdict(list)
    for record in _earlier_stages([*tuning, *row.runs], stages):
        by_stage[record.study.stage].append(record)
    parts = [_runs_part(name, by_stage[name]) for name in row.first_run.study.earlier_stages]
    parts += [_runs_part("tuning and noise floor", tuning)] if tuning else []
    plan = row.first_run.plan
    recorded = plan.tuning_costs.get(row.candidate) if plan else None
    if not tuning and recorded:
        parts.append(_recorded_part(recorded))
    finished = [run for run in row.runs if run.state in ("finished", "diverged")]
    lost = [run for run in row.runs if run.state not in ("finished", "diverged")]
    parts += [_runs_part("reported", finished), _runs_part("failed or unfinished", lost)]
    runs = [*tuning, *row.runs, *(run for members in by_stage.values() for run in members)]
    parts += [_evaluation_part(runs), _task_training_part(runs)]
    is_estimated = any("estimated_joules" in run.costs for run in runs)
    absent = tuple(name for name in row.first_run.study.earlier_stages if not by_stage[name])
    return StudyCost(tuple(p for p in parts if p.flops or p.seconds), is_estimated, absent)


def _earlier_stages(
    runs: Sequence[RunRecord], stages: Mapping[tuple[str, str], RunRecord]
) -> list[RunRecord]:
    """Returns the stages that runs start from, and those that these start from, each once."""
    result: dict[str, RunRecord] = {}
    for run in runs:
        start = stages.get((run.study.plan, _name(run.init_from)))
        while start is not None and start.folder not in result:
            result[start.folder] = start
            start = stages.get((run.study.plan, _name(start.init_from)))
    return [*result.values()]


def _name(folder: str) -> str:
    """Returns the name of a run folder, or of the folder at a URL; blank if there is none."""
    return folder.rstrip("/").rpartition("/")[2]


def _recorded_part(costs: Mapping[str, float]) -> CostPart:
    flops, seconds = costs.get("training_flops", 0.0), costs.get("seconds", 0.0)
    n_runs = round(costs.get("n_runs", 0))
    return CostPart("tuning", n_runs, flops, seconds, costs.get("joules", 0.0))


def _runs_part(label: str, runs: Sequence[RunRecord]) -> CostPart:
    """Returns the cost of runs; of one that did not end, its share of the planned steps."""
    flops = seconds = joules = 0.0
    for run in runs:
        share = 1.0 if run.state == "finished" else _trained_share(run)
        flops += share * run.costs.get("training_flops", 0.0)
        seconds += share * run.costs.get("seconds", 0.0)
        joules += share * run_joules(run)
    return CostPart(label, len(runs), flops, seconds, joules)


def run_joules(run: RunRecord) -> float:
    """Returns the joules of training, measured or estimated; 0 if they are unknown."""
    return run.costs.get("joules", run.costs.get("estimated_joules", 0.0))


def _trained_share(run: RunRecord) -> float:
    return min(max(run.data_hashes, default=0) / run.steps, 1.0) if run.steps else 0.0


def _evaluation_part(runs: Sequence[RunRecord]) -> CostPart:
    """Returns the cost of the evaluations at the ends of runs: forward passes over the splits.

    Their energy is that of the same time of training.
    """
    flops = sum(
        run.evidence.eval_tokens
        * FORWARD_SHARE
        * run.costs.get("training_flops", 0.0)
        / run.costs["tokens"]
        for run in runs
        if run.costs.get("tokens")
    )
    joules = sum(
        run.evidence.eval_seconds * run_joules(run) / run.costs["seconds"]
        for run in runs
        if run.costs.get("seconds")
    )
    seconds = sum(run.evidence.eval_seconds for run in runs)
    return CostPart("evaluation", 0, flops, seconds, joules)


def _task_training_part(runs: Sequence[RunRecord]) -> CostPart:
    """Returns the cost of what evaluation tasks trained; its time is that of the evaluation."""
    flops = sum(run.evidence.eval_training_flops for run in runs)
    return CostPart("training by evaluation tasks", 0, flops, 0.0)
