"""A study: what is compared, declared in a config before any run, and how it becomes a plan.

A config of `compare.py` has two functions. `get_config()` returns the settings that all candidates
share, which flags can change. `study()` returns a `Study`: how the candidates differ, and what will
be claimed.
"""

import runpy
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np

from errors import ConfigError
from eval.split_part import common_limit
from formatting import format_si
from protocol.board.columns import AXIS_LABELS
from protocol.records.metrics import Direction
from protocol.study.budget import (
    TOKENS_PER_PARAM,
    Axis,
    MatchedModel,
    match_as_is,
    match_by_size,
    match_by_steps,
    match_isoflop,
)
from protocol.study.cells import Cell, CellKey
from protocol.study.declaration import Declaration, Tuning
from protocol.study.search_space import SearchSpace
from protocol.study.study_plan import StudyPlan
from protocol.study.tuning import TuningTrial
from settings.changes import with_changes
from settings.cli import call_for_file
from settings.types import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Range,
    TypeHint,
    did_you_mean,
    validate,
)
from training.settings import Settings, resolve

Seed = Annotated[int, Range(low=0, high=2**63 - 1)]
# Returns the seconds per step of candidates, by name.
MeasureSeconds = Callable[[Mapping[str, Settings]], Mapping[str, float]]


@dataclass(frozen=True)
class Study:
    """Everything that a study declares."""

    candidates: Mapping[str, Mapping[str, object]]  # Changes to the shared settings, by dotted key.
    reference: str  # Candidate whose cost the others are matched to.
    comparisons: tuple[tuple[str, str], ...]
    margin: NonNegativeFloat  # Margin of practical equivalence, in the unit of the metric.
    metric: str = "test/bits_per_byte"
    unit: str = "bits per byte"
    better: Direction = "lower"
    # Sections or settings of the objective that candidates may change.
    varied_settings: tuple[str, ...] = ()
    axis: Axis = "training_flops"
    # What is solved to match the cost; "as_is": the costs are the same already.
    match_by: Literal["size", "steps", "isoflop", "as_is"] = "size"
    # Setting that match_by "size" solves, as "model.lstm.width", of all candidates or by candidate;
    # blank: the hidden widths of the channels, else width and depth. "isoflop" solves width and
    # depth too.
    knob: str | Mapping[str, str] = ""
    objectives: tuple[str, ...] = ("causal_lm",)
    sizes: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: {"only": {}})
    budgets: tuple[PositiveFloat, ...] = ()  # Training FLOPs of an isoFLOP study.
    # Tokens per parameter at the middle size of each budget, of all candidates or by candidate.
    tokens_per_param: PositiveFloat | Mapping[str, PositiveFloat] = TOKENS_PER_PARAM
    seeds: tuple[Seed, ...] = (0, 1, 2)
    tuning_metric: str = "valid/bits_per_byte"
    tuning_seeds: tuple[Seed, ...] = (1000,)
    tuning_trials: tuple[TuningTrial, ...] = ()
    # Settings that are tuned together by quasi-random trials; None: a grid of learning rates.
    search: SearchSpace | None = None
    noise_seeds: tuple[Seed, ...] = tuple(range(2000, 2008))
    # Compare runs with the same seed: they must see the same data in the same order.
    paired: bool = False
    # Numbers of seeds at which the results are examined, the last all seeds: seeds can then be
    # added in stages. Each look has a lower level, so that all together keep that of the study.
    looks: tuple[PositiveInt, ...] = ()
    # Training before each run, in order: changes to its settings by name of the stage, such as
    # another objective, other data and other steps. Each stage starts from the one before, with the
    # seed of the run. Costs are matched in the runs, without their stages.
    earlier_stages: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    # Folder with the sweep.json and noise.json of runs with these settings; blank: none.
    results_dir: str = ""

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(Study, include_extras=True).items():
            _check_type(vars(self)[name], hint, f"study.{name}")
        _check_study(self)


class MatchedPlan(NamedTuple):
    """A plan, and how its cells were matched."""

    plan: StudyPlan
    matched: dict[CellKey, MatchedModel]
    reference: str  # Candidate whose cost the others are matched to.


def load_study(path: str) -> Study:
    """Returns the study that a config declares.

    Raises:
        ConfigError: if the config has no function `study` that returns a Study.
    """
    file = Path(path.partition(":")[0])
    if file.suffix != ".py":
        raise ConfigError(
            f"--config={path} is no study: a study is a Python file with a function study(), for "
            "example configs/compare/quickstart.py"
        )
    declare = call_for_file(file, runpy.run_path, str(file)).get("study")
    if not callable(declare):
        raise ConfigError(f"{path} defines no function study(); add one that returns a Study")
    study = call_for_file(file, declare)
    if not isinstance(study, Study):
        raise ConfigError(
            f"study() of {path} returned {study!r}, must be a protocol.study.study.Study"
        )
    return study


def make_plan(
    study: Study,
    shared_settings: Settings,
    vocab_size: int,
    measure_seconds: MeasureSeconds | None = None,
    pairs: tuple[int, ...] = (),
) -> MatchedPlan:
    """Returns the plan of a study.

    Args:
        study: the study.
        shared_settings: the settings that all candidates share.
        vocab_size: size of the vocabulary.
        measure_seconds: measures the seconds per step of candidates, for the axis wall_clock.
        pairs: the number of preferences of each split; () if the data has none.
    """
    cells: list[Cell] = []
    matched: dict[CellKey, MatchedModel] = {}
    for size, size_changes in study.sizes.items():
        for objective in study.objectives:
            candidates = {
                name: resolve(
                    with_changes(
                        shared_settings,
                        {"objective": objective} | dict(size_changes) | dict(changes),
                        "candidates",
                    ),
                    vocab_size,
                    pairs,
                )
                for name, changes in study.candidates.items()
            }
            models = _match_candidates(study, candidates, measure_seconds)
            reference = next(model for model in models if model.name == study.reference)
            for model in models:
                curve = f"{size}-{_format_budget(model.budget)}" if model.size_index else ""
                label = f"{curve}-size{model.size_index}" if model.size_index else size
                budget = model.budget or reference.costs._asdict()[study.axis]
                cell = Cell(model.name, objective, label, model.settings, budget, curve)
                cells.append(cell)
                matched[cell.key] = model
    limit = common_limit([cell.settings for cell in cells])
    cells = [
        cell._replace(settings=with_changes(cell.settings, {"eval.limit": limit})) for cell in cells
    ]
    declaration = Declaration(
        *(study.axis, study.metric, study.margin, study.comparisons, study.unit, study.better),
        varied_settings=study.varied_settings,
        reference=study.reference,
        is_paired=study.paired,
        looks=study.looks,
        earlier_stages=tuple(study.earlier_stages.items()),
    )
    tuning = Tuning(
        study.tuning_metric,
        seeds=study.tuning_seeds,
        trials=study.tuning_trials,
        search=study.search,
    )
    plan = StudyPlan(tuple(cells), declaration, study.seeds, tuning)
    return MatchedPlan(plan, matched, study.reference)


def describe_unmatched(matched_plan: MatchedPlan) -> list[str]:
    """Returns a line for each cell: the residual of the axis and the ratios of other costs."""
    axis, lines = matched_plan.plan.declaration.axis, []
    for key, matched in matched_plan.matched.items():
        ratios = ", ".join(
            f"{name} {ratio:.2f}x"
            for name, ratio in matched.cost_ratios.items()
            if abs(ratio - 1) > 0.005
        )
        model = matched.settings.model
        shape = f"width {model.width}, depth {model.depth}, {' '.join(model.layers)}"
        is_reference, target = key.candidate == matched_plan.reference, "the reference"
        parts = []
        if matched.budget:
            target = "the budget"
        if matched.budget or not is_reference:
            residual = f"{100 * matched.residual:+.2f} %"
            parts.append(f"{AXIS_LABELS[axis]} {residual} from {target}")
        costs = f"relative costs: {ratios}" if ratios else "other costs are equal"
        parts.append("reference" if is_reference else costs)
        if matched.costs.epochs:
            unique = format_si(matched.costs.unique_tokens)
            parts.append(f"{matched.costs.epochs:.3g} epochs of {unique} unique tokens")
        lines.append(f"{key.candidate} ({shape}): {'; '.join(parts)}")
    return lines


def _check_type(value: object, hint: TypeHint, key: str) -> None:
    """Checks that a value has the type that a study declares for it, and its range.

    Raises:
        ConfigError: if it has not; the message names `key`.
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        if value is None and len(arms) < len(typing.get_args(hint)):
            return
        mappings = [arm for arm in arms if typing.get_origin(arm) is Mapping]
        hint = mappings[0] if mappings and isinstance(value, Mapping) else arms[0]
    if hint is object:
        return
    validate(value, hint, key)
    if typing.get_origin(hint) is Mapping and isinstance(value, Mapping):
        for name, item in value.items():
            _check_type(item, typing.get_args(hint)[1], f"{key}[{name!r}]")


def _check_study(study: Study) -> None:
    """Refuses a declaration that contradicts itself.

    Raises:
        ConfigError: if it does.
    """
    if not study.seeds:
        raise ConfigError("seeds are empty; declare 3 or more, which a rank needs")
    for key in ("objectives", "sizes", "tuning_seeds", "noise_seeds"):
        if not vars(study)[key]:
            raise ConfigError(f"{key} are empty; declare one or more, or leave the default")
    if study.reference not in study.candidates:
        raise ConfigError(
            f"the reference {study.reference!r} is not a candidate; "
            f"{did_you_mean(study.reference, study.candidates)}"
        )
    pairs = [frozenset(pair) for pair in study.comparisons]
    if any(len(pair) < 2 for pair in pairs) or len({*pairs}) < len(pairs):
        raise ConfigError(
            f"comparisons {study.comparisons} must be of two candidates, each pair once; remove "
            "the others"
        )
    if study.axis == "wall_clock" and study.match_by != "steps":
        raise ConfigError(
            f"axis 'wall_clock' with match_by={study.match_by!r}: seconds are matched by the "
            "number of steps; set match_by to steps"
        )
    if study.axis == "unique_tokens" and study.match_by != "as_is":
        raise ConfigError(
            f"axis 'unique_tokens' with match_by={study.match_by!r}, which solves another cost; "
            "set match_by to as_is, and train.unique_tokens and train.steps in the settings"
        )
    if study.match_by == "isoflop" and study.axis != "training_flops":
        raise ConfigError(
            f"axis {study.axis!r} with match_by='isoflop', whose budgets are training_flops; "
            "remove the axis, or set match_by to size or steps"
        )
    if study.budgets and study.match_by != "isoflop":
        raise ConfigError(
            f"budgets {study.budgets} with match_by={study.match_by!r}, which uses the cost of the "
            "reference; set match_by to isoflop, or remove the budgets"
        )
    if study.knob and study.match_by not in ("size", "isoflop"):
        raise ConfigError(
            f"knob {study.knob!r} with match_by={study.match_by!r}, which does not change the "
            "size; set match_by to size or isoflop, or remove the knob"
        )
    for key in ("knob", "tokens_per_param"):
        value = vars(study)[key]
        for name in value if isinstance(value, Mapping) else ():
            if name not in study.candidates:
                raise ConfigError(
                    f"{key} names the candidate {name!r}; {did_you_mean(name, study.candidates)}"
                )
    seeds = [*study.seeds, *study.tuning_seeds, *study.noise_seeds]
    if repeated := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ConfigError(
            f"seeds {repeated} are repeated among seeds, tuning_seeds and noise_seeds; runs of "
            "tuning and of the noise floor are never reported: choose other seeds"
        )


def _match_candidates(
    study: Study, candidates: Mapping[str, Settings], measure_seconds: MeasureSeconds | None
) -> list[MatchedModel]:
    knobs = study.knob
    if isinstance(knobs, str):
        knobs = dict.fromkeys(candidates, knobs)
    if study.match_by == "size":
        return match_by_size(candidates, study.axis, reference=study.reference, knobs=knobs)
    if study.match_by == "isoflop":
        # Cost ratios are relative to the first candidate.
        first = {study.reference: candidates[study.reference]}
        return match_isoflop(
            first | dict(candidates),
            study.budgets,
            knobs=knobs,
            tokens_per_param=study.tokens_per_param,
        )
    if study.match_by == "steps":
        seconds = None
        if study.axis == "wall_clock" and measure_seconds is not None:
            seconds = measure_seconds(candidates)
        return match_by_steps(
            candidates, study.axis, reference=study.reference, step_seconds=seconds
        )
    return match_as_is(candidates, study.axis, reference=study.reference)


def _format_budget(number: float) -> str:
    """Returns a number with all its digits, in a form that a folder name may have: 1.5e15."""
    return np.format_float_scientific(number, trim="-", exp_digits=1).replace("+", "")
