"""Conducting a study: run after run in one folder, each restartable, none stopping the others."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from errors import ConfigError, DataError, IsoflopError, NonFiniteError, Preempted
from eval import harness
from protocol.cells import Cell, Key
from protocol.plan import Declaration, Pick, Plan, Run, further, reported, sweep
from protocol.study import Study, dumped
from protocol.tuning import Curve, curve, extension, pick
from training import launch
from training.files import read_json
from training.settings import Settings
from training.tree import from_json

Say = Callable[[str], None]


class Result(NamedTuple):
    run: Run
    score: float  # nan: it diverged
    failed: str  # why there is no score


def conduct(runs: Sequence[Run], folder: Path, say: Say, metric: str) -> list[Result]:
    """Train and judge each run in `folder`/NAME; what is finished there is not done again.

    A run that fails is told and passed over; a stop that is asked for ends all.
    """
    found = []
    for place, run in enumerate(runs, start=1):
        say(f"[{place}/{len(runs)}] {run.name}")
        found.append(one(run, folder, say, metric))
    return found


def one(run: Run, root: Path, say: Say, metric: str) -> Result:
    """Seeds share what is compiled: they differ in data alone."""
    settings, folder = judged_by(from_json(Settings, run.settings), metric), root / run.name
    if not settings.train.compile_cache:
        cache = str((root / "compiled").absolute())
        settings = replace(settings, train=replace(settings.train, compile_cache=cache))
    command = {"study": run.name}
    try:
        launch.train(settings, folder, harness.judges, flags=command, study=run.study)
    except Preempted:
        raise
    except NonFiniteError as error:
        say(f"{run.name} diverged: {error}")
        return Result(run, math.nan, "")
    except IsoflopError as error:
        say(f"{run.name} failed: {type(error).__name__}: {error}")
        return Result(run, math.nan, str(error))
    return Result(run, score(folder, run.steps, metric), "")


def judged_by(settings: Settings, metric: str) -> Settings:
    """Runs are judged on the split of their metric alone: choices on valid, claims on test."""
    name = metric.partition("/")[0]
    splits = tuple(split for split in settings.eval.splits if split == name)
    return replace(settings, eval=replace(settings.eval, splits=splits)) if splits else settings


def score(folder: Path, step: int, metric: str) -> float:
    """What a finished run recorded of `metric`."""
    for path in sorted((folder / "eval" / str(step)).glob("*.json")):
        for item in (read_json(path) or {}).get("scores", []):
            if item["name"] == metric:
                return float(item["value"])
    raise DataError(f"{folder} has no {metric}; name the task that makes it in eval.tasks")


def tuned(plan: Plan, folder: Path, say: Say) -> dict[str, Any]:
    """Sweep, extend where an optimum is at an edge, try the declared trials: what was chosen."""
    if plan.tuning is None:
        raise ConfigError("the plan declares no tuning")
    metric, better = plan.tuning.metric, plan.declaration.better
    scores: dict[Key, dict[float, list[float]]] = {cell.key: {} for cell in plan.cells}
    curves: dict[Key, Curve] = {}
    rates: Mapping[Key, Sequence[float]] | None = None
    while True:
        for result in conduct(sweep(plan, rates), folder, say, metric):
            if result.failed:
                raise DataError(f"{result.run.name} failed, so that nothing can be chosen")
            scores[result.run.key].setdefault(result.run.rate, []).append(result.score)
        curves = {key: curve(found, better) for key, found in scores.items()}
        more = extension(curves)
        if not more:
            break
        say("an optimum is at the edge of its grid: all grids are extended")
        rates = {key: (rate,) for key, rate in more.items()}
    best = {key: found.best for key, found in curves.items()}
    if lost := [key for key, rate in best.items() if rate is None]:
        raise DataError(f"every rate of {'/'.join(lost[0])} diverged; lower the middle of its grid")
    sound = {key: rate for key, rate in best.items() if rate is not None}
    tried: dict[Key, dict[str, list[float]]] = {key: {} for key in sound}
    for result in conduct(further(plan, sound), folder, say, metric):
        tried[result.run.key].setdefault(result.run.trial, []).append(result.score)
    changes = {trial.name: dict(trial.changes) for trial in plan.tuning.trials}
    cells = []
    for cell in plan.cells:
        found = curves[cell.key]
        base = found.scores[found.rates.index(sound[cell.key])]
        name = pick(base if base is not None else math.inf, tried[cell.key], better)
        cells.append(
            {
                **cell.key._asdict(),
                "settings": cell.matters,
                "rate": sound[cell.key],
                "trials": len(found.rates) + len(changes),
                "trial": name,
                "changes": changes.get(name, {}),
                "curve": {"rates": found.rates, "scores": found.scores, "edge": found.edge},
            }
        )
    return {"metric": metric, "plan": plan.digest, "cells": cells}


def untuned(plan: Plan) -> dict[Key, Pick]:
    """Every cell at its own learning rate, which nobody tuned."""
    return {c.key: Pick(c.settings.optimizer.learning_rate, 0) for c in plan.cells}


def repeats(study: Study, plan: Plan, picks: Mapping[Key, Pick]) -> list[Run]:
    """The reference under the seeds of the noise floor, which are never reported: of several sizes
    of a curve the middle one, at the middle budget."""
    own = [cell for cell in plan.cells if cell.candidate == study.reference]
    curves = [cell for cell in own if cell.curve and cell.objective == own[0].objective]
    cells = (curves[len(curves) // 2] if curves else own[0],)
    again = replace(plan, cells=cells, seeds=study.noise_seeds, declaration=_alone(plan, cells))
    runs = reported(again, picks)
    return [run._replace(role="tuning", study=run.study | {"role": "tuning"}) for run in runs]


def noise(results: Sequence[Result], plan: Plan) -> dict[str, Any]:
    """The record of a noise floor."""
    if failed := [r.run.name for r in results if not math.isfinite(r.score)]:
        raise DataError(f"{failed[0]} has no score, so that there is no noise floor; run it again")
    first = results[0].run
    (cell,) = (c for c in plan.cells if c.key == first.key)
    return {
        "metric": plan.declaration.metric,
        "candidate": first.key.candidate,
        "settings": cell.matters,
        "rate": first.rate,
        "seeds": [r.run.seed for r in results],
        "values": [r.score for r in results],
        "flops": first.flops,
    }


def only(runs: Sequence[Run], index: int) -> list[Run]:
    """The run of a task in an array."""
    if index >= len(runs):
        raise ConfigError(f"--index={index}, the plan has {len(runs)} runs: 0 to {len(runs) - 1}")
    return [runs[index]]


def _alone(plan: Plan, cells: Sequence[Cell]) -> Declaration:
    """Of repetitions of one candidate: compared with itself."""
    name = cells[0].candidate
    return replace(plan.declaration, comparisons=((name, name),))


def write(tree: Mapping[str, Any], path: Path) -> None:
    """A record that `protocol.study.recorded` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumped(tree), "utf-8")
