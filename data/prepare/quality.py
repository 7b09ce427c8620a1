"""Quality rules: those of Gopher (Rae et al., arXiv:2112.11446, appendix A.1.1).

A rule is a measure of a text and the bounds, both included, within which the measure must lie.
Words are separated by white space, and lines are those with a character on them. The paper defines
neither. Two parts of the paper are left out on purpose: its rules for repetition within a document,
and its filter for safe search.
"""

import string
from collections.abc import Callable, Mapping
from typing import NamedTuple

from errors import ConfigError
from settings.types import did_you_mean

BULLETS = ("\u2022", "\u2023", "\u25cf", "\u25e6", "\u2043", "-", "*")
ELLIPSES = ("...", "\u2026")
# Characters that are stripped from both ends of a word.
PUNCTUATION = string.punctuation + "\u201c\u201d\u2018\u2019\u2026\u2013\u2014"
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})

Bounds = Mapping[str, tuple[float, float]]


class TextParts(NamedTuple):
    """A text with its words and lines, split once for all rules."""

    text: str
    words: list[str]
    lines: list[str]


class QualityRule(NamedTuple):
    """A quality rule is a measure with default bounds."""

    measure: Callable[[TextParts], float]
    low: float
    high: float


def failed_rules(text: str, bounds: Bounds) -> dict[str, float]:
    """Returns the rules that `text` fails, each with the value of its measure."""
    parts = TextParts(text, text.split(), [s for line in text.splitlines() if (s := line.strip())])
    values = {name: RULES[name].measure(parts) for name in bounds}
    return {n: v for n, v in values.items() if not bounds[n][0] <= v <= bounds[n][1]}


def parse_rules(spec: str) -> dict[str, tuple[float, float]]:
    """Returns the bounds of the rules in `spec`, as in `gopher,words=20:100000`.

    Rules are separated by commas; `gopher` stands for all of them.

    Raises:
        ConfigError: if a rule is unknown or its bounds are not two numbers.
    """
    bounds: dict[str, tuple[float, float]] = {}
    for entry in filter(None, map(str.strip, spec.split(","))):
        name, equals, value = entry.partition("=")
        if entry == "gopher":
            bounds |= {name: (rule.low, rule.high) for name, rule in RULES.items()}
        elif name not in RULES:
            raise ConfigError(f"--quality: unknown rule {name!r}; {did_you_mean(name, RULES)}")
        elif equals:
            bounds[name] = _parse_bounds(name, value)
        else:
            bounds[name] = RULES[name].low, RULES[name].high
    return {name: bounds[name] for name in RULES if name in bounds}


def _parse_bounds(name: str, text: str) -> tuple[float, float]:
    low, colon, high = text.partition(":")
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = 1.0, 0.0
    if not bounds[0] <= bounds[1]:
        raise ConfigError(f"--quality: {name}={text} must be {name}=LOW:HIGH, two numbers")
    return bounds


def _mean_word_length(parts: TextParts) -> float:
    return sum(map(len, parts.words)) / max(1, len(parts.words))


def _hash_ratio(parts: TextParts) -> float:
    return parts.text.count("#") / max(1, len(parts.words))


def _ellipsis_ratio(parts: TextParts) -> float:
    return sum(map(parts.text.count, ELLIPSES)) / max(1, len(parts.words))


def _bullet_lines(parts: TextParts) -> float:
    return sum(line.startswith(BULLETS) for line in parts.lines) / max(1, len(parts.lines))


def _ellipsis_lines(parts: TextParts) -> float:
    return sum(line.endswith(ELLIPSES) for line in parts.lines) / max(1, len(parts.lines))


def _lettered_share(parts: TextParts) -> float:
    lettered = sum(any(map(str.isalpha, word)) for word in parts.words)
    return lettered / max(1, len(parts.words))


def _stop_words(parts: TextParts) -> float:
    return len({word.strip(PUNCTUATION).lower() for word in parts.words} & STOP_WORDS)


RULES = {
    "words": QualityRule(lambda parts: len(parts.words), 50, 100_000),
    "mean_word_length": QualityRule(_mean_word_length, 3, 10),
    "hash_ratio": QualityRule(_hash_ratio, 0, 0.1),  # Ratio of number signs to words.
    "ellipsis_ratio": QualityRule(_ellipsis_ratio, 0, 0.1),  # Ratio of ellipses to words.
    "bullet_lines": QualityRule(_bullet_lines, 0, 0.9),  # Share of lines.
    "ellipsis_lines": QualityRule(_ellipsis_lines, 0, 0.3),  # Share of lines.
    "lettered_words": QualityRule(_lettered_share, 0.8, 1),  # Share of words with a letter.
    "stop_words": QualityRule(
        _stop_words, 2, len(STOP_WORDS)
    ),  # Number of different English stop words.
}
