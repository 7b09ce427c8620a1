"""Measures seconds per step of candidates, for studies whose matched cost is time.

Each candidate trains a few steps in rounds of alternating order (ABBA), so that a machine that
slows down slows all of them. The result is recorded in the folder of the study: the same command
later plans the same steps.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from errors import DataError
from protocol.records.plan_file import NON_IDENTITY_SETTINGS, hash_json, without_settings
from protocol.records.safe_read import parse_jsonl, read_file
from settings.changes import with_changes
from settings.tree import as_json
from training import runner
from training.loop import Evaluator, TrainJob
from training.run.atomic_io import read_json, write_json
from training.settings import Settings

FILE_NAME = "step_seconds.json"
FORMAT = 1
MEASURED_STEPS = 14
SKIPPED_STEPS = 4  # First steps of a round, which compile or warm up.
N_ROUNDS = 2


def measure_step_seconds(
    candidates: Mapping[str, Settings], folder: Path, print_line: Callable[[str], None]
) -> dict[str, float]:
    """Returns the median seconds per step of each candidate, measured or as recorded in `folder`.

    Raises:
        DataError: if the record has another format.
    """
    path = folder / FILE_NAME
    record = read_json(path) or {"format": FORMAT, "seconds": {}}
    if record.get("format") != FORMAT:
        raise DataError(f"{path} has another format than {FORMAT}; remove it to measure again")
    keys = {name: _timing_key(settings) for name, settings in candidates.items()}
    if missing := [name for name in candidates if keys[name] not in record["seconds"]]:
        print_line(f"measuring the seconds per step of {', '.join(missing)}")
        times: dict[str, list[float]] = {name: [] for name in missing}
        for number in range(N_ROUNDS):
            for name in missing if number % 2 == 0 else reversed(missing):
                times[name] += _measure_round(candidates[name])
        for name in missing:
            record["seconds"][keys[name]] = statistics.median(times[name])
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    return {name: float(record["seconds"][keys[name]]) for name in candidates}


def _measure_round(settings: Settings) -> list[float]:
    """Trains a few steps in a temporary folder, and returns their seconds."""
    changes = {
        **{"train.steps": MEASURED_STEPS, "optimizer.warmup": 0, "log.every": 1},
        **{"log.console": "off", "log.trackers": ()},
    }
    with tempfile.TemporaryDirectory() as root:
        scratch = Path(root) / "run"
        runner.train(with_changes(settings, changes), scratch, _no_evaluators)
        rows = parse_jsonl(read_file(scratch, "metrics.jsonl") or b"", "metrics.jsonl")
    seconds = [s for row in rows if (s := row.nonnegative("step_seconds"))]
    return seconds[SKIPPED_STEPS:]


def _no_evaluators(job: TrainJob) -> tuple[Evaluator, Evaluator]:
    return lambda state, step: {}, lambda state, step: {}


def _timing_key(settings: Settings) -> str:
    """Returns the hash of the settings that a step depends on: all but the number of steps."""
    tree = without_settings(as_json(settings), (*NON_IDENTITY_SETTINGS, "train.steps"))
    return hash_json(tree)
