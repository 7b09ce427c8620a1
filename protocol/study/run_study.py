"""Runs a study: one run after another in one folder, each resumable; failed runs are skipped."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from data.open_stores import Data
from errors import ConfigError, DataError, IsoflopError, NonFiniteError, PreemptedError
from eval import harness
from eval.split_part import eval_share
from protocol.records.study_record import TUNING
from protocol.study.cells import CellKey
from protocol.study.declaration import PlannedRun, Tuning, TuningChoice
from protocol.study.plan import reported_runs, sweep_runs, trial_runs, with_stages
from protocol.study.prior_results import dump_record
from protocol.study.study import Study
from protocol.study.study_plan import StudyPlan, axis_value
from protocol.study.time_estimate import read_train_joules, read_train_seconds
from protocol.study.tuning import (
    SweepCurve,
    SweepPoint,
    extend_grids,
    make_sweep_curve,
    select_trial,
)
from protocol.study.tuning_lines import describe_sweep_edges
from settings.changes import with_changes
from settings.tree import from_json
from storage import scratch
from training import runner
from training.run.atomic_io import read_json
from training.settings import Settings

PrintLine = Callable[[str], None]


class RunResult(NamedTuple):
    """The score of a run."""

    run: PlannedRun
    score: float  # nan: the run diverged or failed.
    error_message: str  # Reason of a failure; blank if the run finished or diverged.


def run_all(
    runs: Sequence[PlannedRun], folder: Path, print_line: PrintLine, metric: str
) -> list[RunResult]:
    """Trains and evaluates each run in `folder`/NAME; finished runs are not repeated.

    The error of a run that fails is printed, and the next run starts. A stop signal ends all.
    """
    results = []
    for number, run in enumerate(runs, start=1):
        print_line(f"[{number}/{len(runs)}] {run.name}")
        results.append(run_one(run, folder, print_line, metric))
    return results


def run_one(run: PlannedRun, root: Path, print_line: PrintLine, metric: str) -> RunResult:
    """Trains and evaluates one run, after its earlier stages.

    Raises:
        PreemptedError: if a signal asked to stop.
    """
    flags: dict[str, object] = {}
    for part in (*run.earlier_stages, run):
        settings = with_eval_split(from_json(Settings, part.settings), metric)
        folder, command = root / part.name, {"study": part.name} | flags
        try:
            runner.train(settings, folder, harness.make_evaluators, flags=command, study=part.study)
        except PreemptedError:
            raise
        except NonFiniteError as error:
            print_line(f"{part.name} diverged: {error}")
            return RunResult(run, math.nan, "")
        except IsoflopError as error:
            print_line(f"{part.name} failed: {type(error).__name__}: {error}")
            return RunResult(run, math.nan, str(error))
        flags = {"init_from": scratch.url_of(folder) or str(folder)}
    return RunResult(run, read_score(root / run.name, run.steps, metric), "")


def with_eval_split(settings: Settings, metric: str) -> Settings:
    """Returns settings that evaluate only the split of the metric: valid or test."""
    split_name = metric.partition("/")[0]
    splits = tuple(split for split in settings.eval.splits if split == split_name)
    return with_changes(settings, {"eval.splits": splits}) if splits else settings


def eval_shares(plan: StudyPlan, data: Data, metric: str) -> dict[CellKey, float]:
    """Returns the FLOPs of the evaluation of a run over those of its training, by cell."""
    return {
        cell.key: eval_share(with_eval_split(cell.settings, metric), data) for cell in plan.cells
    }


def read_score(folder: Path, step: int, metric: str) -> float:
    """Returns the value of `metric` that a finished run recorded.

    Raises:
        DataError: if it recorded none.
    """
    for path in sorted((folder / "eval" / str(step)).glob("*.json")):
        for item in (read_json(path) or {}).get("scores", []):
            if item["name"] == metric:
                return float(item["value"])
    raise DataError(f"{folder} has no {metric}; add the task that yields it to eval.tasks")


def run_tuning(plan: StudyPlan, folder: Path, print_line: PrintLine) -> dict[str, object]:
    """Runs the sweep and the declared trials; returns the record of the choices (sweep.json).

    Raises:
        ConfigError: if the plan declares no tuning.
        DataError: if a run failed, or every trial of a cell diverged.
    """
    if plan.tuning is None:
        raise ConfigError("the plan declares no tuning")
    metric, better = plan.tuning.metric, plan.declaration.better
    curves = _run_sweeps(plan, plan.tuning, folder, print_line)
    points = {key: curve.best_point for key, curve in curves.items()}
    if diverged := [key for key, point in points.items() if point is None]:
        remedy = "lower the rates of the search" if plan.tuning.search else "lower its rate"
        raise DataError(f"every trial of {'/'.join(diverged[0])} diverged; {remedy}")
    best_points = {key: point for key, point in points.items() if point is not None}
    trial_scores: dict[CellKey, dict[str, list[float]]] = {key: {} for key in best_points}
    trials = trial_runs(plan, {key: point.learning_rate for key, point in best_points.items()})
    for result in run_all(trials, folder, print_line, metric):
        scores = trial_scores[result.run.cell_key]
        scores.setdefault(result.run.trial_name, []).append(result.score)
    cells = []
    for cell in plan.cells:
        curve, point = curves[cell.key], best_points[cell.key]
        base = curve.scores[curve.points.index(point)]
        name = select_trial(base if base is not None else math.inf, trial_scores[cell.key], better)
        trial = next((t for t in plan.tuning.trials if t.name == name), point.trial)
        cells.append(
            {
                **cell.key._asdict(),
                "settings": cell.identity_settings,
                "learning_rate": point.learning_rate,
                "n_trials": len(curve.points) + len(plan.tuning.trials),
                "trial_name": trial.name,
                "overrides": dict(trial.overrides),
                "costs": _tuning_costs(plan, cell.key, curve, trials, folder),
                "curve": curve.record,
            }
        )
        for line in describe_sweep_edges(cell.key, curve):
            print_line(line)
    stages = plan.stage_changes
    return {"metric": metric, "plan": plan.digest, "earlier_stages": stages, "cells": cells}


def _tuning_costs(
    plan: StudyPlan,
    key: CellKey,
    curve: SweepCurve,
    trials: Sequence[PlannedRun],
    folder: Path,
) -> dict[str, float]:
    """Returns the training FLOPs, seconds, joules and the number of the tuning runs of a cell."""
    runs = sweep_runs(plan, {key: curve.points})
    runs += [run for run in trials if run.cell_key == key]
    runs = with_stages(runs)
    seconds = [read_train_seconds(folder / run.name, run.steps) for run in runs]
    return {
        "training_flops": sum(run.training_flops for run in runs),
        "seconds": sum(seconds),
        "joules": sum(read_train_joules(folder / run.name, run.steps) for run in runs),
        "n_runs": len(runs),
    }


def _run_sweeps(
    plan: StudyPlan, tuning: Tuning, folder: Path, print_line: PrintLine
) -> dict[CellKey, SweepCurve]:
    """Runs the sweeps of all cells, and extends grids of rates while an optimum is at an edge.

    Raises:
        DataError: if a run failed.
    """
    points = {cell.key: tuning.first_points(cell.settings) for cell in plan.cells}
    new_points: Mapping[CellKey, Sequence[SweepPoint]] = points
    scores: dict[CellKey, dict[tuple[float, str], list[float]]] = {key: {} for key in points}
    while True:
        for result in run_all(sweep_runs(plan, new_points), folder, print_line, tuning.metric):
            run = result.run
            if result.error_message:
                raise DataError(f"{run.name} failed, so that no setting can be selected")
            point_key = run.learning_rate, run.trial_name
            scores[run.cell_key].setdefault(point_key, []).append(result.score)
        if tuning.search:
            return {
                key: SweepCurve(
                    of_cell,
                    tuple(tuple(scores[key][rate, trial.name]) for rate, trial in of_cell),
                    plan.declaration.better,
                )
                for key, of_cell in points.items()
            }
        curves = {
            key: make_sweep_curve(
                {rate: values for (rate, _), values in by_point.items()}, plan.declaration.better
            )
            for key, by_point in scores.items()
        }
        next_rates = extend_grids(curves)
        if not next_rates:
            return curves
        print_line("An optimum is at the edge of its grid: all grids are extended.")
        new_points = {key: (SweepPoint(rate),) for key, rate in next_rates.items()}


def default_choices(plan: StudyPlan) -> dict[CellKey, TuningChoice]:
    """Returns the learning rate of the settings for every cell, without tuning."""
    return {c.key: TuningChoice(c.settings.optimizer.learning_rate, 0) for c in plan.cells}


def make_noise_plan(study: Study, plan: StudyPlan) -> StudyPlan:
    """Returns the plan of the noise floors: each candidate with the noise seeds.

    Of an isoFLOP study, it has the middle size of the middle budget.
    """
    cells = []
    for name in study.candidates:
        of_candidate = [cell for cell in plan.cells if cell.candidate == name]
        first = of_candidate[0]
        curves = [c for c in of_candidate if c.isoflop_curve and c.objective == first.objective]
        cells.append(curves[len(curves) // 2] if curves else first)
    comparisons = tuple((cell.candidate, cell.candidate) for cell in cells)
    declaration = replace(plan.declaration, comparisons=comparisons, looks=())
    cells = [cell._replace(budget=axis_value(plan, cell)) for cell in cells]
    return replace(plan, cells=tuple(cells), seeds=study.noise_seeds, declaration=declaration)


def noise_runs(
    study: Study, plan: StudyPlan, tuning_choices: Mapping[CellKey, TuningChoice]
) -> list[PlannedRun]:
    """Returns runs of each candidate with the noise seeds, which are never reported."""
    runs = reported_runs(make_noise_plan(study, plan), tuning_choices)
    return [run._replace(role=TUNING, study=run.study | {"role": TUNING}) for run in runs]


def noise_record(results: Sequence[RunResult], plan: StudyPlan) -> dict[str, object]:
    """Returns the record of the noise floor of each candidate (noise.json).

    Raises:
        DataError: if a run has no score.
    """
    if failed := [r.run.name for r in results if not math.isfinite(r.score)]:
        raise DataError(f"{failed[0]} has no score, so that there is no noise floor; run it again")
    by_cell: dict[CellKey, list[RunResult]] = {}
    for result in results:
        by_cell.setdefault(result.run.cell_key, []).append(result)
    floors = []
    for key, of_cell in by_cell.items():
        first = of_cell[0].run
        (cell,) = (c for c in plan.cells if c.key == key)
        floors.append(
            {
                "candidate": key.candidate,
                "settings": cell.identity_settings,
                "learning_rate": first.learning_rate,
                "seeds": [r.run.seed for r in of_cell],
                "values": [r.score for r in of_cell],
                "training_flops": first.training_flops,
            }
        )
    metric, stages = plan.declaration.metric, plan.stage_changes
    return {"metric": metric, "earlier_stages": stages, "floors": floors}


def select_run(runs: Sequence[PlannedRun], index: int) -> list[PlannedRun]:
    """Returns the run with this index, as the only one of the list.

    Raises:
        ConfigError: if the index is too large.
    """
    if index >= len(runs):
        raise ConfigError(
            f"--run_index={index} is not a run of the plan; its runs have the numbers 0 to "
            f"{len(runs) - 1}"
        )
    return [runs[index]]


def write_record(record: Mapping[str, object], path: Path) -> None:
    """Writes a record that `prior_results.load_prior_results` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_record(record), "utf-8")
