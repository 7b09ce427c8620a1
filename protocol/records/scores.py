"""The scores of a run, each with what produced it: task, version, data, and the part of a split.

A run may be evaluated on a part of a split (`eval.limit`). The task then records the score
SPLIT/part, the label of the part, and scores of different parts are never compared.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from protocol.records.safe_read import CheckedFields
from protocol.records.series import Scores

# Scores that are hashes of the evaluation data of a split, or of a recipe that made the scores.
EVAL_HASH_NAMES = ("eval_set_sha256", "mask_sha256", "recipe_sha256")
PART_NAME = "part"  # The score that is the label of the part of a split.
PART_PREFIX = ", part "  # Precedes the label in the description of an evaluation.
BASELINE_INFIX = "/baseline/"


class RecordedScores(NamedTuple):
    """The numeric scores of a run, by name."""

    scores: Scores
    evaluations: Mapping[str, str]  # Task, version, length, data and part that gave each score.
    parts: Mapping[str, str]  # Labels of the scores of parts of splits.


def read_scores(results: Sequence[CheckedFields], metric: str) -> RecordedScores:
    """Returns the scores of tasks.

    Baselines of another part of the split than that of `metric` are left out, because no model is
    compared with them.
    """
    scores: Scores = {}
    evaluations: dict[str, str] = {}
    parts: dict[str, str] = {}
    for task in results:
        version, label = task.count("version") or 0, task.text("task", 60)
        evaluation = f"{label} v{version}, length {task.count('length')}, data {task.text('data')}"
        rows = task.objects("scores")
        # A text is a sample, a hash of evaluation data, or the label of a part of a split.
        texts = {row.text("name", 80): row.text("value") for row in rows if row.is_text("value")}
        for row in rows:
            value, key = None if row.is_text("value") else row.number("value"), row.text("name", 80)
            if value is None or not key:
                continue
            split = key.partition("/")[0]
            names = [n for n in EVAL_HASH_NAMES if f"{split}/{n}" in texts]
            hashes = [f"{n} {texts[f'{split}/{n}']}" for n in names]
            scores[key], read = (value, version), ""
            if part := texts.get(f"{split}/{PART_NAME}"):
                parts[key], read = part, f"{PART_PREFIX}{part}"
            evaluations[key] = ", ".join([evaluation + read, *hashes])
    split = metric.partition("/")[0]
    other = {
        key
        for key in scores
        if key.startswith(f"{split}{BASELINE_INFIX}") and parts.get(key) != parts.get(metric)
    }
    return RecordedScores({k: v for k, v in scores.items() if k not in other}, evaluations, parts)


def part_difference(evaluation: str, other: str) -> str:
    """Returns in words that two evaluations read different parts of a split.

    It is blank if they differ in more than the part.
    """
    (task, part), (other_task, other_part) = map(_task_and_part, (evaluation, other))
    if task != other_task or part == other_part:
        return ""
    texts = [label.partition(", sha256")[0] or "the whole split" for label in (part, other_part)]
    return f"the scored part of the split ({texts[1]}, not {texts[0]})"


def _task_and_part(evaluation: str) -> tuple[str, str]:
    """Returns an evaluation without its part and its hashes, and the part."""
    for name in EVAL_HASH_NAMES:
        evaluation = evaluation.partition(f", {name} ")[0]
    task, _, part = evaluation.partition(PART_PREFIX)
    return task, part
