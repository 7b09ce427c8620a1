"""The plan of a study: what will be run and claimed, hashed before any run.

Cells (candidates under an objective at a size, matched by `protocol/study/budget.py`), learning
rates and seeds together give runs, each with all of its settings. The hash covers what was
declared: axis, metric, margin, comparisons, cells, tuning and seeds, but no outcome. Each run.json
records it.
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from errors import ConfigError
from formatting import format_percent
from protocol.board.columns import pluralize
from protocol.records.metrics import Direction, check_direction
from protocol.records.study_record import REPORTED, TUNING, Role
from protocol.statistics.power import NoiseFloor, critical_difference, critical_difference_of_minima
from protocol.study.budget import TOLERANCE, Axis, compute_run_costs
from protocol.study.cells import Cell, CellKey, hash_json
from protocol.study.tuning import MIN_RATES, NO_TRIAL, TuningTrial, learning_rate_grid
from settings.changes import with_changes
from settings.tree import as_json
from settings.types import did_you_mean

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Assumed training speed over that of large matrix products, where no step was measured.
ASSUMED_EFFICIENCY = 0.25


@dataclass(frozen=True)
class Declaration:
    """What the study will claim; any other result is exploratory."""

    axis: Axis
    metric: str  # Name in the results, as test/bits_per_byte.
    margin: float  # Margin of practical equivalence.
    comparisons: tuple[tuple[str, str], ...]  # Pairs of candidates, at each objective and size.
    unit: str = "bits per byte"
    better: Direction = "lower"
    alpha: float = 0.05
    varied_settings: tuple[str, ...] = ()  # Settings of the objective that candidates may vary.


@dataclass(frozen=True)
class Tuning:
    """The tuning that every candidate gets, on a metric of the validation split."""

    metric: str
    n_rates: int = MIN_RATES
    seeds: tuple[int, ...] = (1000,)  # Never reported.
    trials: tuple[TuningTrial, ...] = ()  # Further trials at the best learning rate.

    def __post_init__(self) -> None:
        split, _, name = self.metric.partition("/")
        if split != "valid" or not name:
            raise ConfigError(
                f"the metric of tuning is {self.metric!r}, must be of the validation split, "
                "because claims are made on the test split; name one as valid/bits_per_byte"
            )


class TuningChoice(NamedTuple):
    """The result of tuning a cell."""

    learning_rate: float
    n_trials: int  # Number of trials.
    trial: TuningTrial = NO_TRIAL


class PlannedRun(NamedTuple):
    """A run of the plan, with all of its settings."""

    name: str
    cell_key: CellKey
    role: Role
    learning_rate: float
    seed: int
    trial_name: str
    settings: dict[str, object]  # All settings, as `settings.tree.from_json` reads them.
    training_flops: float
    steps: int
    study: dict[str, object]  # The section "study" of its run.json.


@dataclass(frozen=True)
class StudyPlan:
    """The cells, the declaration, the seeds and the tuning of a study."""

    cells: tuple[Cell, ...]
    declaration: Declaration
    seeds: tuple[int, ...]  # Seeds of the reported runs.
    tuning: Tuning | None = None  # None: learning rates are given as `TuningChoice`s.
    noise_floor: NoiseFloor | None = None

    def __post_init__(self) -> None:
        _check_plan(self)
        _check_axis(self)

    @cached_property
    def digest(self) -> str:
        """The hash of the declared plan."""
        cells = [[*c.key, c.budget, c.digest] for c in self.cells]
        tuning = self.tuning and [*vars(self.tuning).values()]
        return hash_json([cells, vars(self.declaration), self.seeds, tuning])

    @property
    def n_comparisons(self) -> int:
        """The number of declared comparisons over all objectives and sizes (or isoFLOP budgets)."""
        return len({cell.group for cell in self.cells}) * len(self.declaration.comparisons)

    @property
    def min_curve_sizes(self) -> int:
        """The fewest sizes of an isoFLOP curve; 1: candidates are compared at each size."""
        curves = Counter((cell.candidate, *cell.group) for cell in self.cells if cell.isoflop_curve)
        return min(curves.values(), default=1)

    @property
    def critical_difference(self) -> float | None:
        """The smallest claimable difference; None without a noise floor."""
        if self.noise_floor is None:
            return None
        n_runs, alpha = len(self.seeds), self.declaration.alpha
        args = self.noise_floor.sigma, n_runs, self.n_comparisons, alpha
        if self.min_curve_sizes > 1:
            return critical_difference_of_minima(*args, n_sizes=self.min_curve_sizes)
        return critical_difference(*args)

    def duplicates(self) -> list[tuple[str, str]]:
        """Returns pairs of candidates with the same settings, which are never ranked."""
        pairs = itertools.combinations(self.cells, 2)
        return sorted(
            {
                (a.candidate, b.candidate)
                for a, b in pairs
                if a.candidate != b.candidate and a.digest == b.digest
            }
        )


def axis_value(plan: StudyPlan, cell: Cell) -> float:
    """Returns the value of the axis that all candidates of an objective and size share."""
    if cell.budget:
        return cell.budget
    first = next(c for c in plan.cells if c.key[1:] == cell.key[1:])
    return first.budget or compute_run_costs(first.settings)._asdict()[plan.declaration.axis]


def sweep_runs(
    plan: StudyPlan, learning_rates: Mapping[CellKey, Sequence[float]] | None = None
) -> list[PlannedRun]:
    """Returns the runs of the first grids, or of further rates (`tuning.extend_grids`)."""
    tuning = _require_tuning(plan)
    learning_rates = learning_rates or {
        c.key: learning_rate_grid(c.settings.optimizer.learning_rate, tuning.n_rates)
        for c in plan.cells
    }
    return [
        _make_run(plan, cell, rate, seed, TUNING, n_trials=None)
        for cell in plan.cells
        for rate in learning_rates.get(cell.key, ())
        for seed in tuning.seeds
    ]


def trial_runs(plan: StudyPlan, best_rates: Mapping[CellKey, float]) -> list[PlannedRun]:
    """Returns the runs of the declared trials at the best learning rates."""
    tuning = _require_tuning(plan)
    return [
        _make_run(plan, cell, best_rates[cell.key], seed, TUNING, trial, None)
        for cell in plan.cells
        for trial in tuning.trials
        for seed in tuning.seeds
    ]


def reported_runs(
    plan: StudyPlan, tuning_choices: Mapping[CellKey, TuningChoice]
) -> list[PlannedRun]:
    """Returns the runs whose results are reported.

    Raises:
        ConfigError: if a cell has no tuning choice, or cells had different numbers of trials.
    """
    if missing := [cell.key for cell in plan.cells if cell.key not in tuning_choices]:
        raise ConfigError(
            f"{'/'.join(missing[0])} has no tuning choice; tune it, or give a TuningChoice"
        )
    counts = {tuning_choices[cell.key].n_trials for cell in plan.cells}
    if len(counts) > 1:
        raise ConfigError(f"candidates had {sorted(counts)} tuning trials, must be equally many")
    return [
        _make_run(plan, cell, choice.learning_rate, seed, REPORTED, choice.trial, choice.n_trials)
        for cell in plan.cells
        for choice in [tuning_choices[cell.key]]
        for seed in plan.seeds
    ]


def estimate_hours(
    runs: Sequence[PlannedRun],
    step_seconds: Mapping[CellKey, float],
    matmul_flops: float | None = None,
) -> float | None:
    """Returns the training time in hours; None if it cannot be estimated.

    Without the step time of every cell, the estimate assumes that training reaches the share
    `ASSUMED_EFFICIENCY` of the FLOP/s of large matrix products.
    """
    if all(run.cell_key in step_seconds for run in runs):
        return sum(run.steps * step_seconds[run.cell_key] for run in runs) / 3600
    if not matmul_flops:
        return None
    return sum(run.training_flops for run in runs) / (ASSUMED_EFFICIENCY * matmul_flops) / 3600


def format_plan(
    plan: StudyPlan,
    runs: Sequence[PlannedRun],
    step_seconds: Mapping[CellKey, float],
    matmul_flops: float | None = None,
) -> list[str]:
    """Returns the lines that are printed before any run.

    Args:
        plan: the plan.
        runs: its runs that are known so far.
        step_seconds: measured seconds per step of each cell.
        matmul_flops: FLOP/s of large matrix products.
    """
    declared, hours = plan.declaration, estimate_hours(runs, step_seconds, matmul_flops)
    n_tuning = sum(run.role == TUNING for run in runs)
    time = "unknown time, because no step was measured"
    if hours is not None:
        time = f"about {_format_hours(hours)} of training, without compilation and evaluation"
        if matmul_flops and not all(run.cell_key in step_seconds for run in runs):
            time += (
                f", at {format_percent(ASSUMED_EFFICIENCY)} of this machine's "
                f"{matmul_flops / 1e9:,.0f} GFLOP/s for large matrix products"
            )
    lines = [
        f"plan {plan.digest[:12]}: {pluralize(len(plan.cells), 'cell')} (candidate x objective x "
        f"size), {pluralize(len(runs), 'run')} ({n_tuning} for tuning), "
        f"{sum(run.training_flops for run in runs):.3g} training FLOPs, {time}",
        f"matched: {declared.axis}; metric: {declared.metric}; margin of practical equivalence: "
        f"{declared.margin:g} {declared.unit}; comparisons: {plan.n_comparisons:,}",
        _format_critical_difference(plan),
    ]
    lines += [f"{a} and {b} have the same settings: never ranked" for a, b in plan.duplicates()]
    return lines


def _format_hours(hours: float) -> str:
    """Returns a time in minutes, from two hours on in hours."""
    value, unit = (60 * hours, "minutes") if hours < 2 else (hours, "hours")
    number = f"{value:.2g}" if value < 10 else f"{value:,.0f}"
    return f"{number} {unit}" if number != "1" else f"{number} {unit[:-1]}"


def _format_critical_difference(plan: StudyPlan) -> str:
    floor, n = plan.noise_floor, len(plan.seeds)
    if plan.critical_difference is None or floor is None:
        return (
            "smallest claimable difference: unknown, because no noise floor is recorded; measure "
            "one with --stage=noise_floor"
        )
    sizes = f"of minima among {plan.min_curve_sizes} sizes, " if plan.min_curve_sizes > 1 else ""
    source = f" ({floor.source})" if floor.source else ""
    text = (
        f"smallest claimable difference: {plan.critical_difference:.2g} {plan.declaration.unit} "
        f"({sizes}n={n}, {pluralize(plan.n_comparisons, 'comparison')}); noise floor: sigma "
        f"{floor.sigma:.2g} from {floor.n_runs} runs{source}"
    )
    if not floor.training_flops:
        return text
    scales = [
        compute_run_costs(cell.settings).training_flops / floor.training_flops
        for cell in plan.cells
    ]
    if not 0.5 <= min(scales) <= max(scales) <= 2:
        text += (
            f"; sigma was measured at another scale: its runs have {floor.training_flops:.2g} "
            f"FLOPs; the runs of this plan have {min(scales):.2g} to {max(scales):.2g} times as "
            "many"
        )
    return text


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
    name = "_".join(filter(None, parts))
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(f"the run name {name!r} has over 128 characters; shorten {cell.key}")
    study = {
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
    }
    if declared.varied_settings:
        study["varied_settings"] = list(declared.varied_settings)
    if cell.isoflop_curve:
        study["isoflop_curve"] = cell.isoflop_curve
    if n_trials is not None:
        study["tuning_trials"] = n_trials
    return PlannedRun(
        *(name, cell.key, role, learning_rate, seed, trial.name),
        *(as_json(settings), costs.training_flops, settings.train.steps, study),
    )


def _require_tuning(plan: StudyPlan) -> Tuning:
    if plan.tuning is None:
        raise ConfigError("the plan declares no tuning; give it a Tuning, or tuning choices")
    return plan.tuning


def _check_plan(plan: StudyPlan) -> None:
    """Refuses a plan whose names, comparisons, margin or seeds are missing or inconsistent.

    Raises:
        ConfigError: if it is so.
    """
    keys, names = [cell.key for cell in plan.cells], {cell.candidate for cell in plan.cells}
    if not keys or len(set(keys)) < len(keys):
        raise ConfigError(f"a plan has {len(keys)} cells, {len(set(keys))} of them distinct")
    trials = [trial.name for trial in plan.tuning.trials] if plan.tuning else []
    for name in {*(part for key in keys for part in key), *trials}:
        if not NAME_PATTERN.fullmatch(name):
            raise ConfigError(
                f"the name {name!r} must be 1 to 128 letters, digits, '.', '_' or '-', and begin "
                "with a letter or digit"
            )
    for name in (name for pair in plan.declaration.comparisons for name in pair):
        if name not in names:
            raise ConfigError(
                f"comparisons name the candidate {name!r}; {did_you_mean(name, names)}"
            )
    if not plan.declaration.comparisons:
        raise ConfigError("a plan declares no comparison; name pairs of candidates")
    if not plan.declaration.margin >= 0:
        raise ConfigError(f"margin is {plan.declaration.margin}, must be 0 or more")
    tuning_seeds = plan.tuning.seeds if plan.tuning else ()
    if not plan.seeds or len({*plan.seeds, *tuning_seeds}) < len(plan.seeds) + len(tuning_seeds):
        raise ConfigError(
            f"seeds {plan.seeds} and tuning seeds {tuning_seeds} must be distinct, one or more, "
            "because tuning runs are never reported"
        )


def _check_axis(plan: StudyPlan) -> None:
    """Refuses a cell whose cost is not that of its group.

    Raises:
        ConfigError: if there is one.
    """
    axis = plan.declaration.axis
    for cell in plan.cells:
        target, value = axis_value(plan, cell), compute_run_costs(cell.settings)._asdict()[axis]
        if axis == "wall_clock" and not cell.budget:
            raise ConfigError(
                f"{'/'.join(cell.key)} has no seconds as its budget; measure the time of a step"
            )
        if axis != "wall_clock" and abs(value / target - 1) > TOLERANCE:
            raise ConfigError(
                f"{'/'.join(cell.key)} has {axis} {value:.6g}, {value / target - 1:+.2%} from "
                f"the {target:.6g} of its group, must be within {TOLERANCE:.0%}; match it with "
                "protocol/study/budget.py"
            )
