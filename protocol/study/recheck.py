"""Checks that need jax: costs computed again from settings, and runs trained again.

`leaderboard.py RUNS --check --cost` and `leaderboard.py RUNS --rerun=N` call these.
"""

import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from errors import IsoflopError
from eval import harness
from protocol.records.safe_read import parse_object, read_file, sanitize
from protocol.records.series import increasing_steps
from settings.changes import with_changes
from settings.json_types import JsonObject
from settings.tree import from_json
from training import accounting, runner
from training.run.atomic_io import read_json
from training.settings import Settings

COST_TOLERANCE = 1e-6  # Relative difference within which a cost is the recorded one.
SCORE_TOLERANCE = 1e-4  # The same of a score, which other devices change in its last digits.
SHOWN_DIFFERENCES = 3  # Differences of a run that are listed.


class RerunResult(NamedTuple):
    """The comparison of a run with the same run, trained again."""

    folder: str
    lines: list[str]  # What was compared, with both values.
    differs: bool


def check_costs(folders: Sequence[tuple[Path, str]]) -> list[str]:
    """Returns a line for each run whose recorded cost is not that of its settings.

    Args:
        folders: run folders, each with the name to show.
    """
    lines = []
    for path, name in folders:
        try:
            record = _read_run(path)
            settings = from_json(Settings, record["settings"])
            cost = accounting.cost_record(accounting.model_cost(settings), settings)
        except (IsoflopError, KeyError) as error:
            lines.append(f"{name}: its cost cannot be computed: {sanitize(str(error))}")
            continue
        differences = list(_cost_differences(record.get("cost", {}), cost))
        lines += [f"{name}: {text}" for text in differences[:SHOWN_DIFFERENCES]]
    return lines


def rerun(
    folders: Sequence[tuple[Path, str]], count: int, print_line: Callable[[str], None]
) -> list[RerunResult]:
    """Trains `count` random finished runs again, and compares their hashes and scores.

    The runs are chosen anew in each call, so that nobody knows which ones will be checked.
    """
    finished = [
        item
        for item in folders
        if (read_json(item[0] / "status.json") or {}).get("state") == "finished"
    ]
    results = []
    for path, name in random.SystemRandom().sample(finished, min(count, len(finished))):
        print_line(f"training {name} again")
        with tempfile.TemporaryDirectory() as scratch:
            results.append(_rerun_one(path, name, Path(scratch) / "run"))
    return results


def _rerun_one(path: Path, name: str, scratch: Path) -> RerunResult:
    record = _read_run(path)
    settings = from_json(Settings, record["settings"])
    quiet = {"log.console": "off", "log.trackers": (), "train.compile_cache": ""}
    settings = harness.with_recorded_limit(settings, _recorded_scores(path, settings.train.steps))
    source = record.get("flags", {}).get("init_from", "")
    flags = {"init_from": source} if source else {}
    try:
        runner.train(with_changes(settings, quiet), scratch, harness.make_evaluators, flags=flags)
    except IsoflopError as error:
        return RerunResult(name, [f"{name}: it failed: {sanitize(str(error))}"], True)
    lines = [*_hash_lines(path, scratch), *_score_lines(path, scratch, settings.train.steps)]
    return RerunResult(name, [f"{name}: {text}" for text, _ in lines], any(d for _, d in lines))


def _hash_lines(path: Path, scratch: Path) -> Iterator[tuple[str, bool]]:
    """Yields whether both runs saw the same data, and whether their losses are equal."""
    old, new = (increasing_steps(read_file(p, "metrics.jsonl") or b"") for p in (path, scratch))
    hashes = [{r.count("step"): r.text("data_hash") for r in rows} for rows in (old, new)]
    common = [step for step, value in hashes[0].items() if value and step in hashes[1]]
    differing = [step for step in common if hashes[0][step] != hashes[1][step]]
    if differing:
        yield f"it saw other data at step {differing[0]} when trained again", True
    else:
        yield f"the hashes of its data are the same at {len(common)} logged steps", not common
    losses = [{r.count("step"): r.number("loss") for r in rows} for rows in (old, new)]
    last = max((s for s in losses[0] if s is not None and losses[0][s] is not None), default=None)
    yield f"last loss: recorded {losses[0].get(last)}, again {losses[1].get(last)}", False


def _score_lines(path: Path, scratch: Path, steps: int) -> Iterator[tuple[str, bool]]:
    """Yields each numeric score as recorded and as given by the run trained again."""
    again = {score["name"]: score["value"] for score in _recorded_scores(scratch, steps)}
    for score in _recorded_scores(path, steps):
        key, value = score["name"], score["value"]
        if isinstance(value, str) or key not in again or not _is_compared(key):
            continue
        is_same = math.isclose(value, again[key], rel_tol=SCORE_TOLERANCE, abs_tol=1e-9)
        yield f"{key}: recorded {value:.6g}, again {again[key]:.6g}", not is_same


def _recorded_scores(run: Path, steps: int) -> list[JsonObject]:
    """Returns the scores of all tasks at the last step."""
    files = sorted((run / "eval" / str(steps)).glob("*.json"))
    return [score for file in files for score in (read_json(file) or {}).get("scores", [])]


def _is_compared(name: str) -> bool:
    """Returns whether a score is a property of the model, not of the machine."""
    return not any(part in name for part in ("per_second", "ms_per_token", "seconds"))


def _cost_differences(recorded: Mapping[str, object], computed: JsonObject) -> Iterator[str]:
    for key, value in computed.items():
        stated = recorded.get(key)
        if not isinstance(value, int | float):
            continue
        if not isinstance(stated, int | float):
            yield f"its cost has no {key}; its settings give {value:.6g}"
        elif not math.isclose(stated, value, rel_tol=COST_TOLERANCE):
            yield f"its cost.{key} is {stated:.6g}; its settings give {value:.6g}"


def _read_run(path: Path) -> JsonObject:
    """Returns run.json, read without trust."""
    return dict(parse_object(read_file(path, "run.json") or b"{}", "run.json").tree)
