"""Scored checkpoints of a run before its last step, as further points of scaling laws.

`python -m eval --run=RUN --step=N` scores a checkpoint. Its loss is a point of a law at its tokens
only if its learning rate is that of the other points: with a constant schedule always; with
warmup-stable-decay (arXiv:2404.06395) at the full rate, before the cooldown, where it lies above
the law of finished runs by a gap. In a cooldown or under a cosine it is neither.
"""

import os
from pathlib import Path
from typing import NamedTuple

from errors import DataError
from protocol.records.run_record import RunRecord, read_results
from protocol.records.safe_read import MAX_JSONL_BYTES, read_file, sanitize
from protocol.records.scores import read_scores
from settings.run_json import is_intact
from settings.types import is_digits

MAX_CHECKPOINTS = 1000  # Folders of scores that are read of a run.


class ScoredCheckpoint(NamedTuple):
    """The score of a checkpoint."""

    step: int
    share: float  # Its step over all steps of the run.
    value: float
    before_cooldown: bool  # Whether the learning rate of the run falls later.


class RunCheckpoints(NamedTuple):
    """The scored checkpoints of a run, and why others are no points."""

    points: tuple[ScoredCheckpoint, ...]
    excluded: tuple[str, ...]


def read_checkpoints(path: Path, record: RunRecord, min_share: float) -> RunCheckpoints:
    """Returns the checkpoints of the run folder at `path` that have the metric of the run.

    Args:
        path: the run folder.
        record: its record.
        min_share: the share of the steps at the full learning rate after which a checkpoint counts.
    """
    points, excluded = [], []
    for step in _scored_steps(path):
        if not 0 < step < record.steps:
            continue
        try:
            problem = _rate_problem(record, step, min_share)
            value = None if problem else _read_value(path, record, step)
        except DataError as error:
            problem, value = str(error), None
        if value is None:
            problem = problem or f"it has no {record.metric}"
            excluded.append(f"{record.folder} at step {step}: {sanitize(problem, 300)}")
            continue
        is_early = record.settings.get("optimizer.schedule") == "wsd"
        points.append(ScoredCheckpoint(step, step / record.steps, value, is_early))
    return RunCheckpoints(tuple(points), tuple(excluded))


def _scored_steps(path: Path) -> list[int]:
    """Returns the steps of which a run folder has scores; a folder that is a link has none."""
    root = path / "eval"
    if root.is_symlink() or not root.is_dir():
        return []
    names = [e.name for e in os.scandir(root) if e.is_dir(follow_symlinks=False)]
    steps = [int(name) for name in names if is_digits(name)]
    return sorted(steps)[:MAX_CHECKPOINTS]


def _rate_problem(record: RunRecord, step: int, min_share: float) -> str:
    """Returns why the learning rate at a step is not that of a point; blank if it is."""
    schedule, steps = record.settings.get("optimizer.schedule", ""), record.steps
    if schedule not in ("constant", "wsd"):
        return f"under the schedule {schedule or 'unknown'} its learning rate is between others"
    start, end = _setting(record, "optimizer.warmup"), float(steps)
    if start < 1:
        start *= steps
    if schedule == "wsd":
        end -= max(round(_setting(record, "optimizer.cooldown_fraction") * steps), 1)
    if step > end:
        return f"it is in the cooldown, which begins at step {end:.0f}"
    first = start + min_share * (end - start)
    if step < first:
        return f"it is before step {first:.0f}, from which on checkpoints count"
    return ""


def _setting(record: RunRecord, key: str) -> float:
    """Returns a setting of a run.

    Raises:
        DataError: if it is no number.
    """
    text = record.settings.get(key, "")
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{key} is {text!r}, must be a number") from None


def _read_value(path: Path, record: RunRecord, step: int) -> float | None:
    """Returns the metric at a step; None if it was not scored.

    Raises:
        DataError: if a file is damaged, or the metric was evaluated on other text.
    """

    def read(*parts: str) -> bytes | None:
        return read_file(path, *parts, max_bytes=MAX_JSONL_BYTES)

    results = read_results(path, step, read)
    for fields in results:
        if not is_intact(fields.tree, is_sealed=record.evidence.is_sealed):
            raise DataError(f"{fields.name} is not as it was written; evaluate the step again")
    scores, evaluations, _ = read_scores(results, record.metric)
    if record.metric not in scores:
        return None
    if evaluations[record.metric] != record.keys["evaluation"]:
        raise DataError("its evaluation is not that of the last step; evaluate both alike")
    return scores[record.metric][0]
