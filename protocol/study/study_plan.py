"""A study's plan: cells, declaration, seeds and tuning, hashed before any run.

The hash covers what is declared: axis, metric, margin, comparisons, cells, tuning and seeds, but no
outcome. Each run.json records it, and plan.json has what it is the hash of
(`protocol/records/plan_file.py`).
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from errors import ConfigError
from protocol.records.plan_file import hash_json
from protocol.records.tuning_record import BATCH_SIZE
from protocol.statistics.power import (
    NoiseFloor,
    detectable_difference,
    detectable_difference_of_minima,
)
from protocol.statistics.sequential import check_looks
from protocol.study.budget import TOLERANCE, compute_run_costs
from protocol.study.cells import Cell, CellKey
from protocol.study.declaration import Declaration, Tuning, TuningChoice
from settings.changes import with_changes
from settings.json_types import JsonObject
from settings.types import did_you_mean
from training.run.provenance import redact
from training.run.strict_json import to_json_value

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class StudyPlan:
    """The cells, the declaration, the seeds and the tuning of a study."""

    cells: tuple[Cell, ...]
    declaration: Declaration
    seeds: tuple[int, ...]  # Seeds of the reported runs.
    tuning: Tuning | None = None  # None: learning rates are given as `TuningChoice`s.
    noise_floors: Mapping[str, NoiseFloor] = field(default_factory=dict)  # By candidate.

    def __post_init__(self) -> None:
        _check_plan(self)
        _check_axis(self)
        _check_search(self)

    @cached_property
    def digest(self) -> str:
        """The hash of the declared plan."""
        return hash_json(self.declared_tree)

    @cached_property
    def declared_tree(self) -> JsonObject:
        """What is declared, as plan.json has it."""
        declared, tuning = self.declaration, self.tuning
        study = {k: v for k, v in vars(declared).items() if k != "earlier_stages"} | {
            "comparisons": [list(pair) for pair in declared.comparisons],
            "seeds": list(self.seeds),
            "looks": list(declared.looks),
            "varied_settings": list(declared.varied_settings),
            "tuning_seeds": list(tuning.seeds) if tuning else [],
            **self.tuned_settings_tree,
        }
        if stages := self.stage_changes:
            study["earlier_stages"] = [*stages]
        tree = {
            "study": study,
            **({"earlier_stages": stages} if stages else {}),
            "tuning": tuning and _tuning_tree(tuning, self.cells[0]),
            "cells": [
                {
                    **cell.key._asdict(),
                    "isoflop_curve": cell.isoflop_curve,
                    "value": axis_value(self, cell),
                    "settings": cell.identity_settings,
                }
                for cell in self.cells
            ],
        }
        return redact(to_json_value(tree))

    @property
    def stage_changes(self) -> JsonObject:
        """The changes of settings of each earlier stage, by its name."""
        stages = self.declaration.earlier_stages
        return redact(to_json_value({name: dict(changes) for name, changes in stages}))

    @property
    def tuned_settings_tree(self) -> JsonObject:
        """The settings of a search, under the key with which runs declare them; empty without."""
        search = self.tuning.search if self.tuning else None
        return {"tuned_settings": sorted(search.settings)} if search else {}

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
    def detectable_difference(self) -> float | None:
        """The smallest difference that at least half of such studies claim, of the noisiest pair.

        Each candidate has its own noise floor, of which the upper bound counts; one without has
        the largest that is known. None without any noise floor, or without a comparison.
        """
        if not self.noise_floors or not self.n_comparisons:
            return None
        bounds = {name: floor.upper_bound() for name, floor in self.noise_floors.items()}
        largest, alpha = max(bounds.values()), self.declaration.alpha
        n_runs = len(self.seeds)
        if self.min_curve_sizes > 1:
            return detectable_difference_of_minima(
                *(largest, n_runs, self.n_comparisons, alpha), n_sizes=self.min_curve_sizes
            )
        sigmas = {
            tuple(sorted((bounds.get(a, largest), bounds.get(b, largest))))
            for a, b in self.declaration.comparisons
        }
        return max(
            detectable_difference(a, b, n_runs, self.n_comparisons, alpha) for a, b in sigmas
        )

    def duplicates(self) -> list[tuple[str, str]]:
        """Returns pairs of candidates with the same settings, which are never ranked."""
        digests: dict[str, list[str]] = {}
        for cell in self.cells:
            digests.setdefault(cell.read_digest, []).append(cell.candidate)
        pairs = (itertools.combinations(names, 2) for names in digests.values())
        return sorted({(a, b) for group in pairs for a, b in group if a != b})


def axis_value(plan: StudyPlan, cell: Cell) -> float:
    """Returns the value of the axis that all candidates of an objective and size share."""
    if cell.budget:
        return cell.budget
    first = next(c for c in plan.cells if c.key[1:] == cell.key[1:])
    return first.budget or compute_run_costs(first.settings)._asdict()[plan.declaration.axis]


def choices_tree(
    plan: StudyPlan, tuning_choices: Mapping[CellKey, TuningChoice], sweep_hash: str = ""
) -> JsonObject:
    """Returns what tuning selected for the cells of a plan, as plan.json has it.

    `sweep_hash` is the SHA-256 of the recorded sweep; blank: rates were not tuned.
    """
    cells = []
    for cell in plan.cells:
        choice = tuning_choices[cell.key]
        cells.append(
            {
                **cell.key._asdict(),
                "learning_rate": choice.learning_rate,
                "n_trials": choice.n_trials,
                "trial_name": choice.trial.name,
                "overrides": dict(choice.trial.overrides),
                "curve": dict(choice.curve),
                **{f"tuning_{name}": value for name, value in choice.costs.items()},
            }
        )
    return redact(to_json_value({"sweep": sweep_hash, "cells": cells}))


def _tuning_tree(tuning: Tuning, cell: Cell) -> JsonObject:
    if tuning.search:
        return {"metric": tuning.metric, "search": tuning.search.tree(cell.settings)}
    trials = [[trial.name, dict(trial.overrides)] for trial in tuning.trials]
    return {"metric": tuning.metric, "n_rates": tuning.n_rates, "trials": trials}


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
    if not plan.declaration.comparisons and len(names) > 1:
        raise ConfigError("a plan of several candidates declares no comparison; name pairs of them")
    if not plan.declaration.margin >= 0:
        raise ConfigError(f"margin is {plan.declaration.margin}, must be 0 or more")
    check_looks(plan.declaration.looks, len(plan.seeds))
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


def _check_search(plan: StudyPlan) -> None:
    """Refuses a search whose trials would cost something else than their cell.

    Raises:
        ConfigError: if there is one, or a cell does not permit a trial.
    """
    search, axis = plan.tuning.search if plan.tuning else None, plan.declaration.axis
    if plan.tuning is None or search is None:
        return
    if axis == "wall_clock" and BATCH_SIZE in search.settings:
        raise ConfigError(
            f"the search varies {BATCH_SIZE} at equal wall_clock, but equal tokens of other "
            "batches take other times; match tokens or training_flops, or remove it from the search"
        )
    for cell in plan.cells:
        points = plan.tuning.first_points(cell.settings)
        if axis == "wall_clock" or all(key.startswith("optimizer.") for key in search.settings):
            continue
        value = compute_run_costs(cell.settings)._asdict()[axis]
        for _, trial in points:
            costs = compute_run_costs(with_changes(cell.settings, trial.overrides))._asdict()
            if abs(costs[axis] / value - 1) > TOLERANCE:
                raise ConfigError(
                    f"{trial.name} of the search gives {'/'.join(cell.key)} {axis} "
                    f"{costs[axis]:.6g}, {costs[axis] / value - 1:+.2%} from its own; tune "
                    "settings that leave the cost"
                )
