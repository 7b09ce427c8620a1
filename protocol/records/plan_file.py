"""plan.json: what studies declared before their runs, beside the run folders that it plans.

    {"format": 1, "plans": [{"declared": {...}, "choices": {...}}, ...]}

Each plan stays in the file, in the order in which the plans were made. Runs record the hash of
"declared" as `study.plan`, and that of "choices" (the learning rates that tuning selected, with
their curves) as `study.choices`. The board computes both hashes again, so that neither a run nor
the file can be edited alone.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from errors import DataError
from protocol.records.safe_read import CheckedFields, flatten, parse_object, read_file, sanitize
from protocol.records.study_record import NOT_REPORTED, StudyRecord, parse_study
from protocol.records.tuning_record import (
    RATE_TOLERANCE,
    TrialRecord,
    find_choice_problem,
    find_trials_problem,
    read_trials,
)

FILE_NAME = "plan.json"
FORMAT = 1
# Settings that do not make another candidate: they change where and how it is computed.
NON_IDENTITY_SETTINGS = (
    *("seed", "log", "checkpoint", "debug", "eval"),
    *("model.remat", "train.hang_timeout", "train.compile_cache", "data.cache"),
)
# Settings that a run may have otherwise than its cell: where it is computed, and what is selected.
RUN_SETTINGS = (
    *NON_IDENTITY_SETTINGS,
    *("mesh", "train.grad_accum_steps", "optimizer.learning_rate"),
)
SHOWN_DIFFERENCES = 3  # Settings of a run that are listed.


class PlannedCell(NamedTuple):
    """A candidate of a plan under an objective at a size."""

    candidate: str
    objective: str
    size: str
    isoflop_curve: str
    value: float | None  # Value of the matched axis.
    settings: Mapping[str, str]  # Flat, without `NON_IDENTITY_SETTINGS`.


class RecordedChoice(NamedTuple):
    """What tuning selected for a cell."""

    learning_rate: float | None
    n_trials: int | None
    overrides: Mapping[str, str]
    problem: str  # Why it does not follow from its trials, or these are others than declared.
    trials: tuple[TrialRecord, ...] = ()  # The trials of its sweep, where they are recorded.


class PlanRecord(NamedTuple):
    """A plan of plan.json."""

    position: int  # Place in the file: later plans were made later.
    digest: str
    choices_digest: str
    study: StudyRecord  # What all runs of the plan declare.
    cells: tuple[PlannedCell, ...]
    choices: Mapping[tuple[str, str, str], RecordedChoice]  # By candidate, objective and size.
    tuning_costs: Mapping[str, Mapping[str, float]]  # Costs of tuning, by candidate.
    tuning_metric: str = ""  # Metric by which tuning selected, as valid/bits_per_byte.


class PlanCheck(NamedTuple):
    """What plan.json says of a run."""

    plan: PlanRecord | None = None
    choice: RecordedChoice | None = None  # What tuning selected for the cell of the run.
    problems: Sequence[str] = ()  # Where the run contradicts its plan.


Plans = Mapping[tuple[str, str], PlanRecord]  # By the hashes of plan and choices.


def hash_json(value: object) -> str:
    """Returns the SHA-256 of a value as canonical JSON."""
    text = json.dumps(value, sort_keys=True, default=dict, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_plans(folder: Path) -> dict[tuple[str, str], PlanRecord]:
    """Returns the plans in `folder` by the hashes of plan and choices; empty without a file.

    Raises:
        DataError: if the file is damaged or has another format.
    """
    data = read_file(folder, FILE_NAME)
    if data is None:
        return {}
    top = parse_object(data, FILE_NAME)
    if top.count("format") != FORMAT:
        raise DataError(f"{FILE_NAME} has format {top.count('format')}, this board reads {FORMAT}")
    plans = [_parse_plan(fields, index) for index, fields in enumerate(top.objects("plans"))]
    by_hashes: dict[tuple[str, str], PlanRecord] = {}
    for plan in plans:
        by_hashes.setdefault((plan.digest, plan.choices_digest), plan)
    return by_hashes


def check_plan(study: StudyRecord, settings: CheckedFields, plans: Plans) -> PlanCheck:
    """Returns the plan of a run, what tuning selected for it, and where it contradicts them."""
    if not plans or not study.plan:
        return PlanCheck()
    choices = {key[1]: plan for key, plan in plans.items() if key[0] == study.plan}
    if not choices:
        problem = f"{FILE_NAME} has no plan with the hash {study.plan[:12]} that it records"
        return PlanCheck(problems=[problem])
    if study.role in NOT_REPORTED:
        return PlanCheck(next(iter(choices.values())))
    if study.choices not in choices:
        problem = f"{FILE_NAME} has no tuning choices with the hash {study.choices[:12]!r}"
        return PlanCheck(problems=[problem])
    plan = choices[study.choices]
    problems = [
        f"it declares {name} {_show(recorded)}, its plan {_show(declared)}"
        for name, recorded, declared in _declared_fields(study, plan.study)
        if recorded != declared
    ]
    seed = settings.count("seed")
    if seed not in plan.study.seeds:
        problems.append(f"its seed {seed} is none of its plan, {_show(plan.study.seeds)}")
    flat = flatten(without_settings(settings.tree, RUN_SETTINGS))
    objective = settings.text("objective")
    cells = [
        cell
        for cell in plan.cells
        if (cell.candidate, cell.objective) == (study.candidate, objective)
        and cell.isoflop_curve == study.isoflop_curve
    ]
    if not cells:
        problem = f"its plan has no candidate {study.candidate} under {objective}"
        return PlanCheck(plan, None, [*problems, problem])
    differences = [_setting_differences(flat, cell, plan) for cell in cells]
    nearest = min(range(len(cells)), key=lambda i: len(differences[i]))
    cell = cells[nearest]
    problems += [f"it has {text}" for text in differences[nearest][:SHOWN_DIFFERENCES]]
    if study.value != cell.value:
        problems.append(f"it declares the value {_show(study.value)}, its plan {_show(cell.value)}")
    rate, choice = settings.section("optimizer").number("learning_rate"), plan.choices.get(cell[:3])
    return PlanCheck(plan, choice, [*problems, *_choice_problems(study, rate, choice)])


def _declared_fields(a: StudyRecord, b: StudyRecord) -> list[tuple[str, object, object]]:
    names = (
        *("axis", "metric", "better", "margin", "comparisons", "n_comparisons", "seeds"),
        *("reference", "is_paired", "looks", "tuning_seeds", "varied_settings", "tuned_settings"),
        "earlier_stages",
    )
    x, y = a._asdict(), b._asdict()
    return [(name, x[name], y[name]) for name in names]


def _setting_differences(
    settings: Mapping[str, str], cell: PlannedCell, plan: PlanRecord
) -> list[str]:
    """Returns the settings of a run that are neither those of a cell nor selected by tuning."""
    choice = plan.choices.get(cell[:3])
    expected = {k: v for k, v in cell.settings.items() if not _is_below(k, RUN_SETTINGS)}
    expected |= {
        k: v
        for k, v in (choice.overrides if choice else {}).items()
        if not _is_below(k, RUN_SETTINGS)
    }
    return [
        f"{key} {settings.get(key)}, its plan {expected.get(key)}"
        for key in dict.fromkeys([*expected, *settings])
        if settings.get(key) != expected.get(key)
    ]


def _choice_problems(
    study: StudyRecord, rate: float | None, choice: RecordedChoice | None
) -> list[str]:
    if choice is None:
        return ["its plan has no tuning choice for it"]
    problems = [choice.problem] if choice.problem else []
    chosen = choice.learning_rate
    if rate is None or chosen is None or not math.isclose(rate, chosen, rel_tol=RATE_TOLERANCE):
        problems.append(f"its learning rate is {_show(rate)}, tuning selected {_show(chosen)}")
    if study.tuning_trials != choice.n_trials:
        problems.append(
            f"it declares {study.tuning_trials} tuning trials, its plan {choice.n_trials}"
        )
    return problems


def _parse_plan(fields: CheckedFields, position: int) -> PlanRecord:
    declared, choices = fields.section("declared"), fields.section("choices")
    study = parse_study(declared.section("study"))
    cells = tuple(_parse_cell(cell) for cell in declared.objects("cells"))
    groups = {(cell.objective, cell.isoflop_curve or cell.size) for cell in cells}
    study = study._replace(n_comparisons=len(groups) * len(study.comparisons))
    picks: dict[tuple[str, str, str], RecordedChoice] = {}
    search = _parse_search(declared)
    costs: dict[str, dict[str, float]] = {}
    for cell in choices.objects("cells"):
        key = (cell.text("candidate", 80), cell.text("objective"), cell.text("size", 80))
        picks[key] = _parse_choice(cell, study.better, search)
        total = costs.setdefault(key[0], {})
        for name in ("training_flops", "seconds", "joules", "n_runs"):
            if (cost := cell.nonnegative(f"tuning_{name}")) is not None:
                total[name] = total.get(name, 0.0) + cost
    hashes = hash_json(declared.tree), hash_json(choices.tree)
    metric = declared.section("tuning").text("metric", 80)
    return PlanRecord(position, *hashes, study, cells, picks, costs, metric)


def _parse_search(declared: CheckedFields) -> list[tuple[str, Mapping[str, str]]] | None:
    """Returns the names and settings of the trials of a declared search; None without one."""
    tuning = declared.section("tuning")
    if "search" not in tuning.tree:
        return None
    trials = tuning.section("search").objects("trials")
    return [(x.text("name", 80), flatten(x.section("overrides").tree)) for x in trials]


def _parse_choice(
    cell: CheckedFields, better: str, search: Sequence[tuple[str, Mapping[str, str]]] | None
) -> RecordedChoice:
    rate, n_trials = cell.number("learning_rate"), cell.count("n_trials")
    overrides, trials = flatten(cell.section("overrides").tree), read_trials(cell.section("curve"))
    # Curves are of the metric of tuning, which has the direction of the study's metric.
    problem = find_choice_problem(trials, rate, overrides, better)
    if search is not None and n_trials:
        problem = problem or find_trials_problem(trials, search)
    return RecordedChoice(rate, n_trials, overrides, problem, tuple(trials))


def _parse_cell(cell: CheckedFields) -> PlannedCell:
    return PlannedCell(
        cell.text("candidate", 80),
        cell.text("objective"),
        cell.text("size", 80),
        cell.text("isoflop_curve", 80),
        cell.nonnegative("value"),
        flatten(cell.section("settings").tree),
    )


def without_settings(tree: Mapping[str, object], paths: tuple[str, ...]) -> dict[str, object]:
    """Returns a tree of settings without the sections and settings at dotted paths."""
    tree_left = {key: value for key, value in tree.items() if key not in paths}
    for section, _, name in (path.partition(".") for path in paths if "." in path):
        inner = tree_left.get(section)
        if isinstance(inner, Mapping):
            tree_left[section] = {key: value for key, value in inner.items() if key != name}
    return tree_left


def _is_below(key: str, paths: tuple[str, ...]) -> bool:
    return any(key == path or key.startswith(f"{path}.") for path in paths)


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return sanitize(str([*value]), 80)
    return sanitize(str(value), 80)
