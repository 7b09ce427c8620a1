"""Baselines on the board: what tables of n-grams and compressors reach (`eval/tasks/baselines.py`).

They have no rank. A candidate that is not below the bigram table of the very text that it saw has
no rank either: it has learned less than which token follows which.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from protocol.board.columns import format_score

METRIC = "bits_per_byte"  # Baselines are in its unit.
BIGRAM = "seen/token_2"
NAMES = {
    **{f"byte_{order}": f"byte {order + 1}-gram" for order in range(5)},
    **{"token_1": "unigram", "token_2": "bigram", "token_3": "trigram"},
    **{"gzip": "gzip -9", "bzip2": "bzip2 -9", "xz": "xz -9e"},
}
SOURCES = {"seen": "of the text seen", "train": "of training text", "split": "of the split alone"}
# Baselines that the table and the charts show; the others are listed below the table.
SHOWN = ("seen/token_1", BIGRAM, "seen/token_3", "seen/byte_4", "train/token_3")
LINES = (BIGRAM, "seen/token_3")


class Baseline(NamedTuple):
    """A baseline, with the lowest and the highest value over the rows of a group."""

    key: str  # As seen/token_2.
    low: float
    high: float

    @property
    def label(self) -> str:
        """What it is, as "bigram of the text seen"."""
        source, _, name = self.key.partition("/")
        return f"{NAMES[name]} {SOURCES[source]}"

    @property
    def mean(self) -> float:
        """The middle of its values."""
        return (self.low + self.high) / 2

    @property
    def text(self) -> str:
        """Its value, or its range."""
        ends = dict.fromkeys(map(format_score, (self.low, self.high)))
        return " to ".join(ends)


def group_baselines(scores: Sequence[Mapping[str, float]], metric: str) -> list[Baseline]:
    """Returns the baselines of the rows with these scores by falling value.

    They are those of the split of the metric.
    """
    values: dict[str, list[float]] = {}
    for row_scores in scores:
        for key, value in _read_baselines(row_scores, metric).items():
            values.setdefault(key, []).append(value)
    baselines = [Baseline(key, min(numbers), max(numbers)) for key, numbers in values.items()]
    return sorted(baselines, key=lambda b: (-b.mean, b.key))


def best_compressor(baselines: Sequence[Baseline]) -> list[Baseline]:
    """Returns the compressor with the lowest value; none if none was measured."""
    compressors = [b for b in baselines if b.key.startswith("split/")]
    return [min(compressors, key=lambda b: b.mean)] if compressors else []


def shown_baselines(baselines: Sequence[Baseline]) -> list[Baseline]:
    """Returns the baselines that have a row in the table."""
    best = best_compressor(baselines)
    return [b for b in baselines if b.key in SHOWN or b in best]


def below_bigram(scores: Mapping[str, float], metric: str, mean: float | None) -> bool | None:
    """Returns whether a mean is below the bigram table of the text seen; None: not known."""
    bigram = _read_baselines(scores, metric).get(BIGRAM)
    return None if bigram is None or mean is None else mean < bigram


def bigram_problem(scores: Mapping[str, float], metric: str, mean: float | None) -> str:
    """Returns why a row that is not below its bigram table has no rank; blank if it is below."""
    if mean is None or below_bigram(scores, metric, mean) is not False:
        return ""
    bigram = _read_baselines(scores, metric)[BIGRAM]
    return (
        f"its mean of {format_score(mean)} is not below {format_score(bigram)}, which a bigram "
        "table of the text that it saw reaches"
    )


def _read_baselines(scores: Mapping[str, float], metric: str) -> dict[str, float]:
    """Returns the baselines among the scores of a row, as `seen/token_2`: value."""
    split, _, metric_name = metric.partition("/")
    if metric_name != METRIC:
        return {}
    keys = (f"{source}/{name}" for source in SOURCES for name in NAMES)
    by_key = {key: scores.get(f"{split}/baseline/{key}") for key in keys}
    return {key: value for key, value in by_key.items() if value is not None}
