"""The lines that say what a study tunes, what it fixes, what that costs, and where ranges end."""

from collections.abc import Mapping, Sequence

from protocol.board.columns import pluralize
from protocol.records.inert_settings import drop_inert
from protocol.records.safe_read import CheckedFields, flatten
from protocol.records.tuning_record import (
    BATCH_SIZE,
    LEARNING_RATE,
    best_trial,
    describe_edges,
    read_trials,
)
from protocol.study.budget import compute_run_costs
from protocol.study.cells import CellKey
from protocol.study.declaration import Tuning
from protocol.study.search_space import SAMPLER
from protocol.study.study_plan import StudyPlan
from protocol.study.tuning import GRID_FACTOR, SweepCurve

TUNED_SECTION = "optimizer."  # Its settings are listed as fixed, with the batch size.


def describe_tuning(plan: StudyPlan) -> list[str]:
    """Returns the lines of a plan on its tuning; none if learning rates are given."""
    tuning = plan.tuning
    if tuning is None:
        return []
    settings = [flatten(drop_inert(CheckedFields(c.identity_settings, "s"))) for c in plan.cells]
    return [_tuned_line(plan, tuning), _fixed_line(settings, _tuned_keys(tuning))]


def describe_sweep_edges(key: CellKey, curve: SweepCurve) -> list[str]:
    """Returns a warning if the best point of a sweep is at an end of what was tried."""
    trials = read_trials(CheckedFields(curve.record, "curve"))
    if curve.best_point is None:
        return []
    return describe_edges("/".join(key), trials, best_trial(trials, curve.better))


def _tuned_keys(tuning: Tuning) -> set[str]:
    if tuning.search:
        return {*tuning.search.settings}
    return {LEARNING_RATE}.union(*(trial.overrides for trial in tuning.trials))


def _tuned_line(plan: StudyPlan, tuning: Tuning) -> str:
    """Returns what is tuned, by how many runs, and what they cost."""
    if search := tuning.search:
        parts = [f"{key} {space.describe()}" for key, space in search.settings.items()]
        if BATCH_SIZE in search.settings:
            parts.append("train.steps so that the tokens stay equal")
        n_trials = search.n_trials
        what = f"{', '.join(parts)}; {n_trials} {SAMPLER} (seed {search.seed}), the same for all"
    else:
        n_trials = tuning.n_rates + len(tuning.trials)
        what = f"{LEARNING_RATE} at {tuning.n_rates} rates or more, a factor {GRID_FACTOR:g} apart"
        if tuning.trials:
            names = ", ".join(trial.name for trial in tuning.trials)
            what += f"; then {names} at the best rate"
    costs = [compute_run_costs(cell.settings).training_flops for cell in plan.cells]
    n_runs = n_trials * len(tuning.seeds)
    seeds = " and ".join(map(str, tuning.seeds))
    return (
        f"tuned: {what}; each trial with {'seed' if len(tuning.seeds) == 1 else 'seeds'} {seeds}, "
        f"scored by the mean {tuning.metric}: {pluralize(n_runs * len(plan.cells), 'run')}, "
        f"{n_runs * sum(costs):.3g} training FLOPs, {n_runs / len(plan.seeds):.3g} times those of "
        "the reported runs"
    )


def _fixed_line(settings: Sequence[Mapping[str, str]], tuned: set[str]) -> str:
    """Returns the settings of optimization that are not tuned, with their values."""
    keys = sorted({key for flat in settings for key in flat if key.startswith(TUNED_SECTION)})
    parts = []
    for key in (*keys, BATCH_SIZE):
        values = list(dict.fromkeys(flat.get(key, "unused") for flat in settings))
        if key not in tuned:
            parts.append(f"{key.removeprefix(TUNED_SECTION)} {' or '.join(values)}")
    return f"fixed: {', '.join(parts)}, and all other settings of model and data"
