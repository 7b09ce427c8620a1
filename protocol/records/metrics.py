"""Metrics by name: the default metric of each objective, and the better direction of each metric.

`DIRECTION` excludes some scores on purpose, so that nothing is ranked by them: properties of the
data or of a baseline (`majority_accuracy`, `bag_of_words_nats`, `untrained_spearman`, `chance`),
ends of intervals (`recall@1_low`), and scores that a useless model can make perfect (`alignment`,
`uniformity`).
"""

import re
from typing import Literal

from errors import ConfigError
from protocol.records.study_record import StudyRecord

Direction = Literal["lower", "higher"]
DEFAULT_METRICS = {  # Metric by objective, where the study declares none.
    "causal_lm": "test/bits_per_byte",
    "masked_lm": "test/masked_nats",
    "denoising": "test/denoised_nats",
    "contrastive": "test/recall@1",
    "preference": "test/preference_accuracy",
}
DIRECTION: dict[str, Direction] = {  # By the name without split or task, and without @64 or @2x.
    "bits_per_byte": "lower",
    "nats_per_token": "lower",
    "nats": "lower",
    "masked_nats": "lower",
    "masked_accuracy": "higher",
    "denoised_nats": "lower",
    "denoised_bits_per_byte": "lower",
    "denoised_accuracy": "higher",
    "denoised_span_match": "higher",
    "recall": "higher",
    "recall@1_reverse": "higher",
    "recall@1_of_100": "higher",
    "recall@1_of_100_reverse": "higher",
    "caption_bits_per_byte": "lower",
    "mrr": "higher",
    "preference_accuracy": "higher",
    "preference_likelihood_accuracy": "higher",
    "preference_nats": "lower",
    "accuracy": "higher",
    "accuracy_per_byte": "higher",
    "answer_nats": "lower",
    "answer_bits_per_byte": "lower",
    "spearman": "higher",
    "pearson": "higher",
    "f1": "higher",
    "macro_f1": "higher",
    "span_f1": "higher",
    "rmse": "lower",
    "prefill_tokens_per_second": "higher",
    "decode_ms_per_token": "lower",
    "state_bytes": "lower",
    "state_bytes_estimate": "lower",
}
DIRECTIONS: dict[str, Direction] = {"lower": "lower", "higher": "higher"}
COSTS = (  # Scores that are costs of a model, not its quality.
    *("prefill_tokens_per_second", "decode_ms_per_token"),
    *("state_bytes", "state_bytes_estimate"),
)
CONTEXT_SUFFIX = re.compile(r"@[0-9]{1,12}x?$")


def score_direction(score: str) -> Direction | None:
    """Returns the better direction of a score by its name; None if `DIRECTION` has none."""
    return DIRECTION.get(_base_name(score))


def is_quality(score: str) -> bool:
    """Returns whether a score is the quality of a model, with a known better direction."""
    return score_direction(score) is not None and _base_name(score) not in COSTS


def metric_direction(metric: str, study: StudyRecord) -> Direction | None:
    """Returns the better direction, from `DIRECTION`, else from the study; None if unknown."""
    return score_direction(metric) or DIRECTIONS.get(study.better)


def check_direction(metric: str, better: Direction) -> Direction:
    """Returns the better direction that a study declares of its metric.

    Raises:
        ConfigError: if `DIRECTION` has the opposite one.
    """
    if (expected := score_direction(metric)) not in (None, better):
        raise ConfigError(
            f"better is {better!r}, but {expected} {metric} is better; set better={expected!r}"
        )
    return better


def metric_problem(metric: str, study: StudyRecord) -> str:
    """Returns why nothing is ranked by this metric; blank if it can be."""
    direction = metric_direction(metric, study)
    if direction is None:
        return (
            f"it is not known whether lower or higher {metric} is better; its study can declare "
            "it (`better`)"
        )
    if study.better not in ("", direction):
        return f"its study declares that {study.better} {metric} is better, but {direction} is"
    return ""


def _base_name(score: str) -> str:
    return CONTEXT_SUFFIX.sub("", score.rpartition("/")[2])
