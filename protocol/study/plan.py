"""The runs of a plan, each with all of its settings, and the lines that describe the plan.

Cells (candidates under an objective at a size, matched by `protocol/study/budget.py`), learning
rates and seeds together give runs. `protocol/study/study_plan.py` has the plan and its hash.
"""

from collections.abc import Mapping, Sequence

from arch.cost.totals import OBJECTIVE
from errors import ConfigError
from formatting import format_percent
from protocol.board.columns import pluralize
from protocol.records.metrics import check_direction
from protocol.records.plan_file import hash_json
from protocol.records.study_record import REPORTED, STAGE, TUNING, Role
from protocol.statistics.power import NoiseFloor
from protocol.study.budget import compute_run_costs
from protocol.study.cells import Cell, CellKey
from protocol.study.declaration import PlannedRun, Tuning, TuningChoice
from protocol.study.prior_results import find_search_problem
from protocol.study.study_plan import NAME_PATTERN, StudyPlan, axis_value, choices_tree
from protocol.study.time_estimate import (
    ASSUMED_EFFICIENCY,
    ASSUMED_START_SECONDS,
    CellSeconds,
    PlanTime,
    estimate_time,
)
from protocol.study.tuning import NO_TRIAL, SweepPoint, TuningTrial
from protocol.study.tuning_lines import describe_tuning
from settings.changes import with_changes
from settings.tree import as_json
from training.accounting import model_cost
from training.settings import Settings

# Settings of a stage that are not those of the run: its objective decides how it is evaluated.
STAGE_DEFAULTS: Mapping[str, object] = {"eval.tasks": (), "preference.pairs": ()}


def sweep_runs(
    plan: StudyPlan, points: Mapping[CellKey, Sequence[SweepPoint]] | None = None
) -> list[PlannedRun]:
    """Returns the runs of a sweep, or of further points of it (`tuning.extend_grids`)."""
    tuning = _require_tuning(plan)
    points = points or {cell.key: tuning.first_points(cell.settings) for cell in plan.cells}
    return [
        _make_run(plan, cell, rate, seed, TUNING, trial)
        for cell in plan.cells
        for rate, trial in points.get(cell.key, ())
        for seed in tuning.seeds
    ]


def trial_runs(plan: StudyPlan, best_rates: Mapping[CellKey, float]) -> list[PlannedRun]:
    """Returns the runs of the declared trials at the best learning rates."""
    tuning = _require_tuning(plan)
    return [
        _make_run(plan, cell, best_rates[cell.key], seed, TUNING, trial)
        for cell in plan.cells
        for trial in tuning.trials
        for seed in tuning.seeds
    ]


def reported_runs(
    plan: StudyPlan,
    tuning_choices: Mapping[CellKey, TuningChoice],
    sweep_hash: str = "",
) -> list[PlannedRun]:
    """Returns the runs whose results are reported.

    Raises:
        ConfigError: if a cell has no tuning choice, or cells had different numbers of trials.
    """
    if missing := [cell.key for cell in plan.cells if cell.key not in tuning_choices]:
        raise ConfigError(
            f"{'/'.join(missing[0])} has no tuning choice; tune it, or give a TuningChoice"
        )
    _check_equal_trials(plan, tuning_choices)
    choices = hash_json(choices_tree(plan, tuning_choices, sweep_hash))
    runs = [
        _make_run(plan, cell, choice.learning_rate, seed, REPORTED, choice.trial, choice.n_trials)
        for cell in plan.cells
        for choice in [tuning_choices[cell.key]]
        for seed in plan.seeds
    ]
    return [run._replace(study=run.study | {"choices": choices}) for run in runs]


def _check_equal_trials(plan: StudyPlan, tuning_choices: Mapping[CellKey, TuningChoice]) -> None:
    """Refuses choices from unequal tuning.

    Raises:
        ConfigError: if cells had different numbers of trials, or others than the search declares.
    """
    counts = {tuning_choices[cell.key].n_trials for cell in plan.cells}
    if len(counts) > 1:
        raise ConfigError(
            f"candidates had {sorted(counts)} tuning trials, must be equally many; tune them again "
            "(--stage=tune)"
        )
    for cell in plan.cells:
        choice = tuning_choices[cell.key]
        if choice.curve and (problem := find_search_problem(plan, choice.curve)):
            raise ConfigError(f"{'/'.join(cell.key)}: {problem}; tune it again (--stage=tune)")


def with_stages(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Returns runs with their earlier stages, which runs may share, in the order of training."""
    unique = {part.name: part for run in runs for part in (*run.earlier_stages, run)}
    return [*unique.values()]


def format_plan(
    plan: StudyPlan,
    runs: Sequence[PlannedRun],
    cell_seconds: Mapping[CellKey, CellSeconds],
    matmul_flops: float | None = None,
    eval_shares: Mapping[CellKey, float] | None = None,
) -> list[str]:
    """Returns the lines that are printed before any run.

    Args:
        plan: the plan.
        runs: its runs that are known so far, with their stages.
        cell_seconds: measured times of each cell.
        matmul_flops: FLOP/s of large matrix products.
        eval_shares: FLOPs of evaluation over those of training, by cell.
    """
    declared, n_tuning = plan.declaration, sum(run.role == TUNING for run in runs)
    n_stages = sum(run.role == STAGE for run in runs)
    kinds = f"{n_tuning} for tuning" + f", {n_stages} of earlier stages" * bool(n_stages)
    time = _format_time(estimate_time(runs, cell_seconds, matmul_flops, eval_shares), matmul_flops)
    lines = [
        f"plan {plan.digest[:12]}: {pluralize(len(plan.cells), 'cell')} (candidate x objective x "
        f"size), {pluralize(len(runs), 'run')} ({kinds}), "
        f"{sum(run.training_flops for run in runs):.3g} training FLOPs, {time}",
        f"matched: {declared.axis}; metric: {declared.metric}; margin of practical equivalence: "
        f"{declared.margin:g} {declared.unit}; comparisons: {plan.n_comparisons:,}",
        _format_detectable_difference(plan),
        *describe_tuning(plan),
    ]
    lines += [f"{a} and {b} have the same settings: never ranked" for a, b in plan.duplicates()]
    return lines


def _format_time(estimate: PlanTime | None, matmul_flops: float | None) -> str:
    """Returns the time of a plan with its parts, and what was assumed."""
    if estimate is None:
        return "unknown time, because no step was measured"
    parts = [
        f"{label} {_format_hours(hours)}"
        for label, hours in (
            ("training", estimate.training),
            ("evaluation", estimate.evaluation),
            ("start and compilation", estimate.start),
        )
        if hours
    ]
    text = f"about {_format_hours(estimate.total)} ({', '.join(parts)}"
    if not estimate.is_measured and matmul_flops:
        text += (
            f"; assumed: {format_percent(ASSUMED_EFFICIENCY)} of this machine's "
            f"{matmul_flops / 1e9:,.0f} GFLOP/s for large matrix products, "
            f"{ASSUMED_START_SECONDS:g} s to compile each cell"
        )
    return f"{text})"


def _format_hours(hours: float) -> str:
    """Returns a time in minutes, from two hours on in hours."""
    value, unit = (60 * hours, "minutes") if hours < 2 else (hours, "hours")
    number = f"{value:.2g}" if value < 10 else f"{value:,.0f}"
    return f"{number} {unit}" if number != "1" else f"{number} {unit[:-1]}"


def _format_detectable_difference(plan: StudyPlan) -> str:
    floors, n, detectable = plan.noise_floors, len(plan.seeds), plan.detectable_difference
    if not plan.n_comparisons:
        return "one candidate: nothing is compared, and its scaling law can be fitted"
    if detectable is None:
        return (
            "smallest claimable difference: unknown, because no noise floor is recorded; measure "
            "one with --stage=noise_floor"
        )
    sizes = ""
    if plan.min_curve_sizes > 1:
        sizes = f"of minima among {plan.min_curve_sizes} sizes that scatter as seeds alone, "
    sources = ", ".join(dict.fromkeys(floor.source for floor in floors.values() if floor.source))
    sigmas = ", ".join(
        f"{name} {floor.sigma:.2g} (at most {floor.upper_bound():.2g})"
        for name, floor in floors.items()
    )
    n_runs = min(floor.n_runs for floor in floors.values())
    text = (
        f"smallest claimable difference: {detectable:.2g} {plan.declaration.unit}, found in half "
        f"of such studies ({sizes}n={n}, {pluralize(plan.n_comparisons, 'comparison')}); noise "
        f"floor: sigma of {sigmas} from {n_runs} runs each" + f" ({sources})" * bool(sources)
    )
    if unmeasured := sorted({c.candidate for c in plan.cells} - floors.keys()):
        text += f"; {', '.join(unmeasured)} assumed no noisier than these"
    return text + _format_scale(plan, floors)


def _format_scale(plan: StudyPlan, floors: Mapping[str, NoiseFloor]) -> str:
    """Returns a note if sigma was measured at another scale than that of the plan."""
    floor = min(floors.values(), key=lambda floor: floor.training_flops)
    if not floor.training_flops:
        return ""
    scales = [
        compute_run_costs(cell.settings).training_flops / floor.training_flops
        for cell in plan.cells
    ]
    if 0.5 <= min(scales) <= max(scales) <= 2:
        return ""
    return (
        f"; sigma was measured at another scale: its runs have {floor.training_flops:.2g} "
        f"FLOPs; the runs of this plan have {min(scales):.2g} to {max(scales):.2g} times as many"
    )


def _make_run(
    plan: StudyPlan,
    cell: Cell,
    learning_rate: float,
    seed: int,
    role: Role,
    trial: TuningTrial = NO_TRIAL,
    n_trials: int | None = None,
) -> PlannedRun:
    rate_and_seed = {"optimizer.learning_rate": learning_rate, "seed": seed}
    settings = with_changes(cell.settings, rate_and_seed)
    if trial.overrides:
        settings = with_changes(settings, trial.overrides)
    costs, declared = compute_run_costs(settings), plan.declaration
    parts = [*cell.key, f"lr{learning_rate:.4g}", trial.name, f"seed{seed}"]
    if role == TUNING:
        parts.append(role)
    name = _run_name(parts)
    study: dict[str, object] = {
        "plan": plan.digest,
        "candidate": cell.candidate,
        "axis": declared.axis,
        "value": axis_value(plan, cell),
        "metric": declared.metric,
        "better": check_direction(declared.metric, declared.better),
        "margin": declared.margin,
        "comparisons": [list(pair) for pair in declared.comparisons],
        "n_comparisons": plan.n_comparisons,
        "seeds": list(plan.seeds),
        "role": role,
        "reference": declared.reference,
        "is_paired": declared.is_paired,
        "looks": list(declared.looks),
        "tuning_seeds": list(plan.tuning.seeds) if plan.tuning else [],
        **plan.tuned_settings_tree,
    }
    if declared.varied_settings:
        study["varied_settings"] = list(declared.varied_settings)
    if cell.isoflop_curve:
        study["isoflop_curve"] = cell.isoflop_curve
    if n_trials is not None:
        study["tuning_trials"] = n_trials
    if declared.earlier_stages:
        study["earlier_stages"] = [stage for stage, _ in declared.earlier_stages]
    return PlannedRun(
        *(name, cell.key, role, learning_rate, seed, trial.name),
        *(as_json(settings), costs.training_flops, settings.train.steps, study),
        _stage_runs(plan, cell, settings, study),
    )


def _stage_runs(
    plan: StudyPlan, cell: Cell, run_settings: Settings, study: Mapping[str, object]
) -> tuple[PlannedRun, ...]:
    """Returns the earlier stages of a run; runs of one cell and seed share them.

    Raises:
        ConfigError: if the model of a stage has other parameters than that of the run.
    """
    runs, seed = [], run_settings.seed
    for stage, changes in plan.declaration.earlier_stages:
        changed = {**STAGE_DEFAULTS, **changes, "seed": seed}
        settings = with_changes(cell.settings, changed, "earlier_stages")
        _check_start(f"{'/'.join(cell.key)} after the stage {stage}", run_settings, settings)
        key = cell.key._replace(size=f"{cell.size}-{stage}")
        rate = settings.optimizer.learning_rate
        runs.append(
            PlannedRun(
                *(_run_name([*key, f"lr{rate:.4g}", f"seed{seed}"]), key, STAGE, rate, seed, ""),
                *(as_json(settings), compute_run_costs(settings).training_flops),
                *(settings.train.steps, {**study, "role": STAGE, "stage": stage}),
            )
        )
    return tuple(runs)


def _check_start(label: str, run: Settings, stage: Settings) -> None:
    """Refuses a run that cannot start from the parameters of its stage.

    Raises:
        ConfigError: if a part of the model has other parameters.
    """
    ours, start = (
        {part: size for part, size in model_cost(settings).parts.items() if part != OBJECTIVE}
        for settings in (run, stage)
    )
    for part in sorted(ours.keys() | start.keys()):
        if ours.get(part) != start.get(part):
            raise ConfigError(
                f"{label}: {part} has {ours.get(part, 0):,} parameters in the run or its trial, "
                f"and {start.get(part, 0):,} in the stage, must be equal, as a run starts from its "
                "stage; neither earlier_stages nor tuning may change the parameters of the model"
            )


def _run_name(parts: Sequence[str]) -> str:
    """Returns the name of a run.

    Raises:
        ConfigError: if it is too long or has other characters.
    """
    name = "_".join(filter(None, parts))
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(
            f"the run name {name!r} must be at most 128 letters, digits, '.', '_' or '-', and "
            "begin with a letter or digit; shorten or rename its parts"
        )
    return name


def _require_tuning(plan: StudyPlan) -> Tuning:
    if plan.tuning is None:
        raise ConfigError("the plan declares no tuning; give it a Tuning, or tuning choices")
    return plan.tuning
