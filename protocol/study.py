"""A study: what is compared, declared in a config before anything runs, and how it becomes a plan.

A config of `compare.py` has two functions: `get_config()`, the settings that all candidates share,
open to flags like any other; and `study()`, what they differ in and what will be claimed.
"""

import hashlib
import json
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from errors import ConfigError, DataError
from protocol.budget import Axis, Matched, as_given, by_size, by_steps, isoflop
from protocol.cells import Cell, Key
from protocol.plan import Declaration, Pick, Plan, Tuning, nested
from protocol.power import NoiseFloor, noise_floor
from protocol.tuning import NO_TRIAL, Better, Trial
from schema import changed, nearest
from training.files import read_json
from training.settings import Settings, resolved

FORMAT = 1  # of recorded sweeps and noise floors


@dataclass(frozen=True)
class Study:
    """Everything that is declared. `recorded` is a folder with sweep.json and noise.json of runs at
    this very setting, from which rates and the noise floor are taken."""

    candidates: Mapping[str, Mapping[str, Any]]  # changes of the shared settings, by dotted key
    reference: str  # whose cost the others are given
    comparisons: tuple[tuple[str, str], ...]
    margin: float  # of practical equivalence
    metric: str = "test/bits_per_byte"
    unit: str = "bits per byte"
    better: Better = "lower"
    varies: tuple[str, ...] = ()  # sections or settings of the objective that candidates may change
    axis: Axis = "training_flops"
    rule: Literal["size", "steps", "isoflop", "given"] = "size"  # given: they cost the same already
    objectives: tuple[str, ...] = ("causal_lm",)
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"only": {}})
    budgets: tuple[float, ...] = ()  # training FLOPs of an isoFLOP study
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_metric: str = "valid/bits_per_byte"
    tuning_seeds: tuple[int, ...] = (1000,)
    trials: tuple[Trial, ...] = ()
    noise_seeds: tuple[int, ...] = tuple(range(2000, 2008))
    recorded: str = ""

    def __post_init__(self) -> None:
        _check(self)


class Recorded(NamedTuple):
    """What earlier runs of a study settled, with the hash of the file that says so."""

    picks: dict[Key, Pick]
    floor: NoiseFloor | None
    sources: tuple[str, ...]  # "results/x/sweep.json sha256:..."


class Made(NamedTuple):
    """A plan, and how its cells were made equal."""

    plan: Plan
    matched: dict[Key, Matched]


def load(path: str) -> Study:
    """The study that a config declares."""
    declare = runpy.run_path(path).get("study")
    if not callable(declare):
        raise ConfigError(f"{path} has no study(); define it, returning a Study")
    found = declare()
    if not isinstance(found, Study):
        raise ConfigError(f"study() of {path} returned {found!r}, must be a protocol.study.Study")
    return found


def planned(study: Study, shared: Settings, vocab: int) -> Made:
    """The plan of `study` on `shared` settings; `vocab` ids has the tokenizer."""
    cells: list[Cell] = []
    matched: dict[Key, Matched] = {}
    for size, own in study.sizes.items():
        for objective in study.objectives:
            candidates = {
                name: _with(shared, {"objective": objective} | dict(own) | dict(changes), vocab)
                for name, changes in study.candidates.items()
            }
            found = _equal(study, candidates)
            goal = next(one for one in found if one.name == study.reference).measures
            for one in found:
                curve = f"{size}-{_short(one.budget)}" if one.place else ""
                label = f"{curve}-size{one.place}" if one.place else size
                budget = one.budget or goal._asdict()[study.axis]
                cell = Cell(one.name, objective, label, one.settings, budget, curve)
                cells.append(cell)
                matched[cell.key] = one
    declaration = Declaration(
        *(study.axis, study.metric, study.margin, study.comparisons, study.unit, study.better),
        varies=study.varies,
    )
    tuning = Tuning(study.tuning_metric, seeds=study.tuning_seeds, trials=study.trials)
    return Made(Plan(tuple(cells), declaration, study.seeds, tuning), matched)


def unmatched(made: Made) -> list[str]:
    """For each cell the residual of the axis and the ratios of what is not equal."""
    found = []
    for key, one in made.matched.items():
        ratios = ", ".join(
            f"{name} {ratio:.2f}x" for name, ratio in one.ratios.items() if abs(ratio - 1) > 0.005
        )
        model = one.settings.model
        shape = f"width {model.width}, depth {model.depth}, {' '.join(model.layers)}"
        found.append(
            f"{key.candidate} ({shape}): residual {one.residual:+.2%}; {ratios or 'equal'}"
        )
    return found


def recorded(folder: str, plan: Plan) -> Recorded:
    """Rates and noise floor from `folder`; those of a cell that has changed since are not taken,
    nor those of another metric, nor a floor at another rate than will be reported."""
    root, picks, floor, sources = Path(folder), dict[Key, Pick](), None, []
    sweep, noise = root / "sweep.json", root / "noise.json"
    if (tree := _read(sweep)) is not None:
        other = _other(tree, plan.tuning.metric if plan.tuning else None)
        picks = {} if other else _picks(tree, plan.cells)
        sources.append(cited(sweep) + other)
    if (tree := _read(noise)) is not None:
        cells = [cell for cell in plan.cells if cell.restored(tree["settings"])]
        rates = [picks[c.key].rate if c.key in picks else _rate(c) for c in cells]
        other = _other(tree, plan.declaration.metric)
        if not other and rates and tree.get("rate", rates[0]) not in rates:
            other = f" is at the learning rate {tree['rate']:g}, not {rates[0]:g}: not taken"
        if cells and not other:
            floor = noise_floor(tuple(tree["values"]), cited(noise), tree["flops"])
        if cells:
            sources.append(cited(noise) + other)
    return Recorded(picks, floor, tuple(sources))


def _picks(tree: Mapping[str, Any], cells: Sequence[Cell]) -> dict[Key, Pick]:
    known, picks = {cell.key: cell for cell in cells}, dict[Key, Pick]()
    for found in tree["cells"]:
        key = Key(found["candidate"], found["objective"], found["size"])
        if key in known and known[key].restored(found["settings"]):
            trial = Trial(found["trial"], found["changes"]) if found["trial"] else NO_TRIAL
            picks[key] = Pick(found["rate"], found["trials"], trial)
    return picks


def _other(tree: Mapping[str, Any], metric: str | None) -> str:
    """What to say of a record of another metric."""
    own = tree.get("metric")
    return "" if own == metric else f" is of the metric {own}, not {metric}: not taken"


def _rate(cell: Cell) -> float:
    return cell.settings.optimizer.learning_rate


def cited(path: Path) -> str:
    """A file by its name and hash."""
    return f"{path} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def _check(study: Study) -> None:
    """ConfigError for a declaration that contradicts itself."""
    if study.reference not in study.candidates:
        raise ConfigError(
            f"the reference {study.reference!r} is no candidate; "
            f"{nearest(study.reference, study.candidates)}"
        )
    if study.rule == "isoflop" and study.axis != "training_flops":
        raise ConfigError(
            f"axis {study.axis!r} under the rule isoflop, whose budgets are of training_flops; "
            "leave it out, or use the rule size or steps"
        )
    if study.budgets and study.rule != "isoflop":
        raise ConfigError(
            f"budgets {study.budgets} under the rule {study.rule!r}, which takes the cost of the "
            "reference; use the rule isoflop, or leave them out"
        )
    seeds = [*study.seeds, *study.tuning_seeds, *study.noise_seeds]
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ConfigError(
            f"seeds {twice} are of several of seeds, tuning_seeds and noise_seeds, or there twice; "
            "what was tuned on, or told the noise, is never reported: take others"
        )


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise DataError(f"{path} is no record of format {FORMAT}; make it again, or leave it out")
    return tree


def _equal(study: Study, candidates: Mapping[str, Settings]) -> list[Matched]:
    if study.rule == "size":
        return by_size(candidates, study.axis, reference=study.reference)
    if study.rule == "isoflop":
        first = {study.reference: candidates[study.reference]}  # ratios are to it
        return isoflop(first | dict(candidates), study.budgets)
    if study.rule == "steps":
        return by_steps(candidates, study.axis, reference=study.reference)
    return as_given(candidates, study.axis, reference=study.reference)


def _short(number: float) -> str:
    """All its digits, as the name of a folder may have them: 1.5e15."""
    return np.format_float_scientific(number, trim="-", exp_digits=1).replace("+", "")


def _with(shared: Settings, changes: Mapping[str, Any], vocab: int) -> Settings:
    return resolved(changed(shared, nested(changes), "candidates"), vocab)


def dumped(tree: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT} | dict(tree), indent=1, sort_keys=True) + "\n"
