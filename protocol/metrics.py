"""Metrics by name: which of them judge a run, and which way is better.

Left out of BETTER on purpose, so that nothing is ranked by them: what says something of the data or
of a baseline (`majority_accuracy`, `bag_of_words_nats`, `untrained_spearman`, `chance`), ends of
intervals (`recall@1_low`), and what a useless model can make perfect (`alignment`, `uniformity`).
"""

import re
from typing import Literal

from errors import ConfigError
from protocol.declared import Study

Better = Literal["lower", "higher"]
METRICS = {  # what a run is judged by where its study declares nothing
    "causal_lm": "test/bits_per_byte",
    "masked_lm": "test/masked_nats",
    "denoising": "test/denoised_nats",
    "contrastive": "test/recall@1",
}
BETTER: dict[str, Better] = {  # by the name behind the split or task, without @64 or @2x
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
    "recall@1_back": "higher",
    "mrr": "higher",
    "accuracy": "higher",
    "accuracy_by_byte": "higher",
    "answer_nats": "lower",
    "answer_bits_per_byte": "lower",
    "spearman": "higher",
    "prefill_tokens_per_second": "higher",
    "decode_ms_per_token": "lower",
    "state_bytes": "lower",
    "state_bytes_counted": "lower",
}
DECLARED: dict[str, Better] = {"lower": "lower", "higher": "higher"}
AT = re.compile(r"@\d{1,12}x?$")


def better(metric: str, study: Study) -> Better | None:
    """Which way is better: as the table says, else as the study does; None: nobody says."""
    return _known(metric) or DECLARED.get(study.better)


def agreed(metric: str, better: Better) -> Better:
    """What a study declares of its metric; ConfigError where that is known to be otherwise."""
    if (known := _known(metric)) not in (None, better):
        raise ConfigError(f"better is {better!r}, but of {metric} {known} is; set better={known!r}")
    return better


def objection(metric: str, study: Study) -> str:
    """Why nothing is ranked by this metric, blank if something may be."""
    way = better(metric, study)
    if way is None:
        return f"nothing says whether more or less of {metric} is better: its study can (`better`)"
    if study.better not in ("", way):
        return f"its study says of {metric} that {study.better} is better, but {way} is"
    return ""


def _known(metric: str) -> Better | None:
    return BETTER.get(AT.sub("", metric.rpartition("/")[2]))
