"""What earlier runs of a study recorded: its tuning sweep and its noise floor, as files.

`compare.py --stage=tune` writes sweep.json and `--stage=noise_floor` writes noise.json to the
folder `results_dir` of the study. A plan uses what was recorded for its own settings.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from errors import DataError
from protocol.records.safe_read import CheckedFields, flatten
from protocol.records.tuning_record import find_choice_problem, find_trials_problem, read_trials
from protocol.statistics.power import NoiseFloor, estimate_noise_floor
from protocol.study.cells import Cell, CellKey
from protocol.study.declaration import TuningChoice
from protocol.study.study_plan import StudyPlan
from protocol.study.tuning import NO_TRIAL, TuningTrial
from settings.json_types import JsonObject
from training.run.atomic_io import read_json

FORMAT = 2  # Format of recorded sweeps and noise floors.
UNUSED_SWEEP = " has no choice for these settings: not used"


class PriorResults(NamedTuple):
    """What earlier runs of a study measured, with the files that record it."""

    tuning_choices: dict[CellKey, TuningChoice]
    noise_floors: dict[str, NoiseFloor]  # By candidate.
    sweep_hash: str  # SHA-256 of the sweep that the choices come from; blank: none.
    # What was read, as "learning rates from results/x/sweep.json (sha256 ...)", or why it was not.
    sources: tuple[str, ...]


def load_prior_results(folder: str, plan: StudyPlan) -> PriorResults:
    """Returns the learning rates and the noise floor that `folder` records for the plan.

    A cell whose settings have changed since the record is ignored, and so are a record of another
    metric, and a noise floor at another learning rate than will be reported.
    """
    root, choices, sources = Path(folder), dict[CellKey, TuningChoice](), list[str]()
    sweep, noise, sweep_hash = root / "sweep.json", root / "noise.json", ""
    if (tree := _read_record(sweep)) is not None:
        mismatch = _mismatch(tree, plan, plan.tuning.metric if plan.tuning else None)
        if not mismatch:
            choices, mismatch = _read_choices(tree, plan, sweep)
        sweep_hash = _hash_file(sweep) if choices else ""
        has_search = plan.tuning is not None and plan.tuning.search is not None
        label = "tuned settings from " if has_search else "learning rates from "
        sources.append(label * bool(choices) + cite_file(sweep) + mismatch)
    floors: dict[str, NoiseFloor] = {}
    if (tree := _read_record(noise)) is not None:
        floors, mismatch = _read_floors(tree, plan, choices, str(noise))
        if floors or mismatch:
            sources.append("noise floor from " * bool(floors) + cite_file(noise) + mismatch)
    return PriorResults(choices, floors, sweep_hash, tuple(sources))


def _read_floors(
    tree: JsonObject, plan: StudyPlan, choices: Mapping[CellKey, TuningChoice], source: str
) -> tuple[dict[str, NoiseFloor], str]:
    """Returns the recorded noise floors of the plan's candidates, and why one is not used."""
    floors: dict[str, NoiseFloor] = {}
    problem = _mismatch(tree, plan, plan.declaration.metric)
    for record in tree.get("floors", [tree]):  # An earlier record has one floor at its top.
        cells = [cell for cell in plan.cells if cell.matches_settings(record["settings"])]
        rates = [
            choices[c.key].learning_rate if c.key in choices else _learning_rate(c) for c in cells
        ]
        if not cells:
            continue
        if record.get("learning_rate", rates[0]) not in rates:
            problem = problem or (
                f" has the learning rate {record['learning_rate']:g}, not {rates[0]:g}: not used"
            )
        elif not _mismatch(tree, plan, plan.declaration.metric):
            floor = estimate_noise_floor(tuple(record["values"]), source, record["training_flops"])
            floors |= {cell.candidate: floor for cell in cells}
    has_cells = floors or any(
        cell.matches_settings(record["settings"])
        for record in tree.get("floors", [tree])
        for cell in plan.cells
    )
    return floors, problem if has_cells else ""


def _read_choices(
    tree: JsonObject, plan: StudyPlan, path: Path
) -> tuple[dict[CellKey, TuningChoice], str]:
    """Returns the recorded choices for the cells of a plan, and why one is not used.

    Raises:
        DataError: if a choice is not the best of its own trials: the record was edited.
    """
    by_key, unused = {cell.key: cell for cell in plan.cells}, UNUSED_SWEEP
    choices: dict[CellKey, TuningChoice] = {}
    for record in tree["cells"]:
        key = CellKey(record["candidate"], record["objective"], record["size"])
        if key not in by_key or not by_key[key].matches_settings(record["settings"]):
            continue
        name, rate, curve = record["trial_name"], record["learning_rate"], record["curve"]
        trials = read_trials(CheckedFields(curve, f"{path} curve"))
        overrides, better = flatten(record["overrides"]), plan.declaration.better
        if problem := find_choice_problem(trials, rate, overrides, better):
            raise DataError(
                f"{path} was edited: of {'/'.join(key)}, {problem}; tune again (--stage=tune), or "
                "restore the file"
            )
        if problem := find_search_problem(plan, curve):
            unused = f": of {'/'.join(key)}, {problem}: not used"
            continue
        trial = TuningTrial(name, record["overrides"]) if name else NO_TRIAL
        costs = record.get("costs", {})
        choices[key] = TuningChoice(rate, record["n_trials"], trial, curve, costs)
    return choices, "" if choices else unused


def find_search_problem(plan: StudyPlan, curve: Mapping[str, object]) -> str:
    """Returns why the trials of a recorded sweep are not those of the plan; blank if they are."""
    trials = read_trials(CheckedFields(curve, "curve"))
    search = plan.tuning.search if plan.tuning else None
    if search is None:
        is_search = any(trial.name for trial in trials)
        return "its trials are of a search, and the study declares none" if is_search else ""
    declared = search.trials(plan.cells[0].settings)
    return find_trials_problem(trials, [(x.name, flatten(x.overrides)) for x in declared])


def _mismatch(tree: JsonObject, plan: StudyPlan, metric: str | None) -> str:
    """Returns what to print of a record of another metric or of other stages; blank if none."""
    recorded = tree.get("metric")
    if recorded != metric:
        return f" has the metric {recorded}, not {metric}: not used"
    is_same = tree.get("earlier_stages", {}) == plan.stage_changes
    return "" if is_same else " was recorded after other earlier stages: not used"


def _learning_rate(cell: Cell) -> float:
    return cell.settings.optimizer.learning_rate


def cite_file(path: Path) -> str:
    """Returns the name of a file with the beginning of its SHA-256."""
    return f"{path} (sha256 {_hash_file(path)[:12]})"


def _hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_record(path: Path) -> JsonObject | None:
    if not path.is_file():
        return None
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise DataError(f"{path} is not a record of format {FORMAT}; record it again, or remove it")
    return tree


def dump_record(record: Mapping[str, object]) -> str:
    """Returns a record as JSON with its format."""
    return json.dumps({"format": FORMAT} | dict(record), indent=1, sort_keys=True) + "\n"
