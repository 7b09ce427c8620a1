"""The plan of a study: what will be run and claimed, hashed before anything runs.

Cells (a candidate under an objective at a size, made equal by `protocol/budget.py`) times learning
rates times seeds give runs, each with all of its settings. The hash covers what was declared: axis,
metric, margin, comparisons, cells, tuning and seeds, but no outcome; it stands in each run.json.
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from errors import ConfigError
from protocol.budget import TOLERANCE, Axis, measured
from protocol.cells import Cell, Key, hashed
from protocol.columns import many
from protocol.metrics import agreed
from protocol.power import NoiseFloor, smallest_claim, smallest_claim_of_minima
from protocol.tuning import NO_TRIAL, RATES, Better, Trial, grid
from schema import changed, nearest
from training.settings import Settings
from training.tree import as_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
REACHED = 0.25  # of the speed of large products, in training: for want of a measured step


@dataclass(frozen=True)
class Declaration:
    """What the study will claim; anything else that is found is exploratory."""

    axis: Axis
    metric: str  # by its name in the results, as test/bits_per_byte
    margin: float  # differences below it are of no practical consequence
    comparisons: tuple[tuple[str, str], ...]  # of candidates, within each objective and size
    unit: str = "bits per byte"
    better: Better = "lower"
    alpha: float = 0.05
    varies: tuple[str, ...] = ()  # settings of the objective in which candidates differ


@dataclass(frozen=True)
class Tuning:
    """As much for every candidate; `metric` is of the validation split."""

    metric: str
    rates: int = RATES
    seeds: tuple[int, ...] = (1000,)  # never reported
    trials: tuple[Trial, ...] = ()  # at the best rate

    def __post_init__(self) -> None:
        split, _, name = self.metric.partition("/")
        if split != "valid" or not name:
            raise ConfigError(
                f"the metric of tuning is {self.metric!r}, must be of the validation split: claims "
                "are made on the other; name one as valid/bits_per_byte"
            )


class Pick(NamedTuple):
    """What tuning chose for a cell, or a recorded sweep."""

    rate: float
    trials: int  # that it took
    trial: Trial = NO_TRIAL


class Run(NamedTuple):
    name: str
    key: Key
    role: Literal["tuning", ""]
    rate: float
    seed: int
    trial: str
    settings: dict[str, Any]  # all of them, as `training.tree.from_json` reads them
    flops: float  # of training
    steps: int
    study: dict[str, Any]  # for run.json


@dataclass(frozen=True)
class Plan:
    cells: tuple[Cell, ...]
    declaration: Declaration
    seeds: tuple[int, ...]  # of reported runs
    tuning: Tuning | None = None  # None: rates come from elsewhere, as `Pick`s
    floor: NoiseFloor | None = None

    def __post_init__(self) -> None:
        _check(self)
        _check_axis(self)

    @cached_property
    def digest(self) -> str:
        """The hash of what was declared."""
        cells = [[*c.key, c.budget, c.digest] for c in self.cells]
        tuning = self.tuning and [*vars(self.tuning).values()]
        return hashed([cells, vars(self.declaration), self.seeds, tuning])

    @property
    def comparisons(self) -> int:
        """All that are declared, over objectives and sizes, or budgets of isoFLOP curves."""
        return len({cell.group for cell in self.cells}) * len(self.declaration.comparisons)

    @property
    def sizes(self) -> int:
        """The fewest that a curve has; 1: candidates are compared at each size by itself."""
        curves = Counter((cell.candidate, *cell.group) for cell in self.cells if cell.curve)
        return min(curves.values(), default=1)

    @property
    def claimable(self) -> float | None:
        """The smallest claimable difference; None without a noise floor."""
        if self.floor is None:
            return None
        known = self.floor.sigma, len(self.seeds), self.comparisons, self.declaration.alpha
        if self.sizes > 1:
            return smallest_claim_of_minima(*known, sizes=self.sizes)
        return smallest_claim(*known)

    def copies(self) -> list[tuple[str, str]]:
        """Candidates with the same settings under two names, which are never ranked."""
        pairs = itertools.combinations(self.cells, 2)
        return sorted(
            {
                (a.candidate, b.candidate)
                for a, b in pairs
                if a.candidate != b.candidate and a.digest == b.digest
            }
        )


def crossed(sizes: Mapping[str, Mapping[str, Settings]], objectives: Sequence[str]) -> list[Cell]:
    """Cells of candidates by size, each under each objective.

    An objective changes what a token costs: make cells equal after this, objective by objective.
    """
    return [
        Cell(name, objective, size, changed(settings, {"objective": objective}, "config"))
        for size, candidates in sizes.items()
        for name, settings in candidates.items()
        for objective in objectives
    ]


def value(plan: Plan, cell: Cell) -> float:
    """Of the axis, one for all candidates of an objective and size."""
    if cell.budget:
        return cell.budget
    first = next(c for c in plan.cells if c.key[1:] == cell.key[1:])
    return first.budget or measured(first.settings)._asdict()[plan.declaration.axis]


def sweep(plan: Plan, rates: Mapping[Key, Sequence[float]] | None = None) -> list[Run]:
    """The runs of the first grids, or of further `rates` (`tuning.extension`)."""
    tuning = _tuned(plan)
    rates = rates or {
        c.key: grid(c.settings.optimizer.learning_rate, tuning.rates) for c in plan.cells
    }
    return [
        _run(plan, cell, rate, seed, "tuning", count=None)
        for cell in plan.cells
        for rate in rates.get(cell.key, ())
        for seed in tuning.seeds
    ]


def further(plan: Plan, best: Mapping[Key, float]) -> list[Run]:
    """The runs of the declared trials at the best rates."""
    tuning = _tuned(plan)
    return [
        _run(plan, cell, best[cell.key], seed, "tuning", trial, None)
        for cell in plan.cells
        for trial in tuning.trials
        for seed in tuning.seeds
    ]


def reported(plan: Plan, picks: Mapping[Key, Pick]) -> list[Run]:
    """The runs that results are made of; every cell has been tuned as often as the others."""
    if missing := [cell.key for cell in plan.cells if cell.key not in picks]:
        raise ConfigError(f"nothing was chosen for {'/'.join(missing[0])}; tune it, or give a Pick")
    counts = {picks[cell.key].trials for cell in plan.cells}
    if len(counts) > 1:
        raise ConfigError(f"candidates had {sorted(counts)} trials of tuning, must be equally many")
    return [
        _run(plan, cell, pick.rate, seed, "", pick.trial, pick.trials)
        for cell in plan.cells
        for pick in [picks[cell.key]]
        for seed in plan.seeds
    ]


def hours(
    runs: Sequence[Run], seconds: Mapping[Key, float], speed: float | None = None
) -> float | None:
    """Of training, from `seconds` of a step; without those of all cells from the FLOP/s that large
    products reach, of which training is taken to reach the share `REACHED`; else None."""
    if all(run.key in seconds for run in runs):
        return sum(run.steps * seconds[run.key] for run in runs) / 3600
    return sum(run.flops for run in runs) / (REACHED * speed) / 3600 if speed else None


def lines(
    plan: Plan, runs: Sequence[Run], seconds: Mapping[Key, float], speed: float | None = None
) -> list[str]:
    """What is printed before anything runs; `runs` are those known so far."""
    declared, time = plan.declaration, hours(runs, seconds, speed)
    count = sum(run.role == "tuning" for run in runs)
    took = "unknown hours: no step was measured" if time is None else f"about {time:.2g} hours"
    if speed and not all(run.key in seconds for run in runs):
        took += f" of training, if it reaches {REACHED:.0%} of {speed / 1e9:,.0f} GFLOP/s"
        took += ", which is what large products reach here"
    found = [
        f"plan {plan.digest[:12]}: {len(plan.cells)} cells, {len(runs)} runs ({count} of tuning), "
        f"{sum(run.flops for run in runs):.3g} training FLOPs, {took}",
        f"equal: {declared.axis}; metric: {declared.metric}; practically equivalent within "
        f"{declared.margin:g} {declared.unit}; {many(plan.comparisons, 'comparison')}",
        _reach(plan),
    ]
    found += [f"{a} and {b} have the same settings: never ranked" for a, b in plan.copies()]
    return found


def _reach(plan: Plan) -> str:
    floor, n = plan.floor, len(plan.seeds)
    if plan.claimable is None or floor is None:
        return "smallest claimable difference: unknown, no noise floor is recorded; run 8 seeds"
    sizes = f"of minima among {plan.sizes} sizes, " if plan.sizes > 1 else ""
    text = (
        f"smallest claimable difference: {plan.claimable:.2g} {plan.declaration.unit} "
        f"({sizes}n={n}, {many(plan.comparisons, 'comparison')}, sigma {floor.sigma:.2g} of "
        f"{floor.runs} runs{' in ' + floor.source if floor.source else ''})"
    )
    if not floor.flops:
        return text
    scales = [measured(cell.settings).training_flops / floor.flops for cell in plan.cells]
    if not 0.5 <= min(scales) <= max(scales) <= 2:
        text += (
            f"; sigma is borrowed: its runs have {floor.flops:.2g} FLOPs, these {min(scales):.2g} "
            f"to {max(scales):.2g} times that"
        )
    return text


def _run(
    plan: Plan,
    cell: Cell,
    rate: float,
    seed: int,
    role: Literal["tuning", ""],
    trial: Trial = NO_TRIAL,
    count: int | None = None,
) -> Run:
    optimizer = replace(cell.settings.optimizer, learning_rate=rate)
    settings = replace(cell.settings, seed=seed, optimizer=optimizer)
    if trial.changes:
        settings = changed(settings, nested(trial.changes), "config")
    own, declared = measured(settings), plan.declaration
    parts = (*cell.key, f"lr{rate:.4g}", trial.name, f"seed{seed}", role)
    name = "_".join(filter(None, parts))
    if not NAME.fullmatch(name):
        raise ConfigError(f"the run's name {name!r} has over 128 characters; shorten {cell.key}")
    study = {
        "plan": plan.digest,
        "candidate": cell.candidate,
        "axis": declared.axis,
        "value": value(plan, cell),
        "metric": declared.metric,
        "better": agreed(declared.metric, declared.better),
        "margin": declared.margin,
        "comparisons": [list(pair) for pair in declared.comparisons],
        "declared": plan.comparisons,
        "seeds": list(plan.seeds),
        "role": role,
        **({"varies": list(declared.varies)} if declared.varies else {}),
        **({"curve": cell.curve} if cell.curve else {}),
    }
    if count is not None:
        study["trials"] = count
    return Run(
        *(name, cell.key, role, rate, seed, trial.name),
        *(as_json(settings), own.training_flops, settings.train.steps, study),
    )


def _tuned(plan: Plan) -> Tuning:
    if plan.tuning is None:
        raise ConfigError("the plan declares no tuning; give it a Tuning, or picks of a sweep")
    return plan.tuning


def _check(plan: Plan) -> None:
    """ConfigError for what is said twice, not at all, or of nobody."""
    keys, names = [cell.key for cell in plan.cells], {cell.candidate for cell in plan.cells}
    if not keys or len(set(keys)) < len(keys):
        raise ConfigError(f"a plan has {len(keys)} cells, {len(set(keys))} of them distinct")
    trials = [trial.name for trial in plan.tuning.trials] if plan.tuning else []
    for word in {*(part for key in keys for part in key), *trials}:
        if not NAME.fullmatch(word):
            raise ConfigError(
                f"the name {word!r} must be 1 to 128 letters, digits, '.', '_' or '-', and begin "
                "with a letter or digit"
            )
    for name in (name for pair in plan.declaration.comparisons for name in pair):
        if name not in names:
            raise ConfigError(f"comparisons name the candidate {name!r}; {nearest(name, names)}")
    if not plan.declaration.comparisons:
        raise ConfigError("a plan declares no comparison; name pairs of candidates")
    if not plan.declaration.margin >= 0:
        raise ConfigError(f"margin is {plan.declaration.margin}, must be 0 or more")
    tuned = plan.tuning.seeds if plan.tuning else ()
    if not plan.seeds or len({*plan.seeds, *tuned}) < len(plan.seeds) + len(tuned):
        raise ConfigError(
            f"seeds {plan.seeds} and those of tuning {tuned} must be distinct, one or more: what "
            "was tuned on is never reported"
        )


def _check_axis(plan: Plan) -> None:
    """ConfigError for a cell that does not cost what its group does."""
    axis = plan.declaration.axis
    for cell in plan.cells:
        target, own = value(plan, cell), measured(cell.settings)._asdict()[axis]
        if axis == "wall_clock" and not cell.budget:
            raise ConfigError(f"{'/'.join(cell.key)} has no seconds as its budget; measure a step")
        if axis != "wall_clock" and abs(own / target - 1) > TOLERANCE:
            raise ConfigError(
                f"{'/'.join(cell.key)} has {axis} {own:.6g}, {own / target - 1:+.2%} from the "
                f"{target:.6g} of its group, must be within {TOLERANCE:.0%}; solve it by "
                "protocol/budget.py"
            )


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections."""
    tree: dict[str, Any] = {}
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return tree
