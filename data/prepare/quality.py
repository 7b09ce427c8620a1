"""Rules of quality: those of Gopher (Rae et al., arXiv:2112.11446, appendix A.1.1).

A rule is a measure of a text and the bounds, both included, within which it must lie. Words are
what white space separates and lines are those with something on them: the paper says neither.
Left out on purpose: its rules for repetition within a document, its filter for safe search.
"""

import string
from collections.abc import Callable, Mapping
from typing import NamedTuple

from errors import ConfigError
from schema import nearest

BULLETS = ("\u2022", "\u2023", "\u25cf", "\u25e6", "\u2043", "-", "*")
ELLIPSES = ("...", "\u2026")
MARKS = string.punctuation + "\u201c\u201d\u2018\u2019\u2026\u2013\u2014"  # around a word
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})

Bounds = Mapping[str, tuple[float, float]]


class Parts(NamedTuple):
    """A text, taken apart once for all rules."""

    text: str
    words: list[str]
    lines: list[str]


class Rule(NamedTuple):
    measure: Callable[[Parts], float]
    low: float
    high: float


def broken(text: str, bounds: Bounds) -> dict[str, float]:
    """The rules that `text` breaks, each with what was measured."""
    parts = Parts(text, text.split(), [s for line in text.splitlines() if (s := line.strip())])
    measured = {name: RULES[name].measure(parts) for name in bounds}
    return {n: m for n, m in measured.items() if not bounds[n][0] <= m <= bounds[n][1]}


def parse(spec: str) -> dict[str, tuple[float, float]]:
    """The bounds that `gopher,words=20:100000` names: rules by commas, `gopher` for all of them."""
    chosen: dict[str, tuple[float, float]] = {}
    for entry in filter(None, map(str.strip, spec.split(","))):
        name, equals, given = entry.partition("=")
        if entry == "gopher":
            chosen |= {name: (rule.low, rule.high) for name, rule in RULES.items()}
        elif name not in RULES:
            raise ConfigError(f"--quality: unknown rule {name!r}; {nearest(name, RULES)}")
        elif equals:
            chosen[name] = _bounds(name, given)
        else:
            chosen[name] = RULES[name].low, RULES[name].high
    return {name: chosen[name] for name in RULES if name in chosen}


def _bounds(name: str, given: str) -> tuple[float, float]:
    low, colon, high = given.partition(":")
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = 1.0, 0.0
    if not bounds[0] <= bounds[1]:
        raise ConfigError(f"--quality: {name}={given} must be {name}=LOW:HIGH, two numbers")
    return bounds


def _mean_length(parts: Parts) -> float:
    return sum(map(len, parts.words)) / max(1, len(parts.words))


def _hashes(parts: Parts) -> float:
    return parts.text.count("#") / max(1, len(parts.words))


def _ellipses(parts: Parts) -> float:
    return sum(map(parts.text.count, ELLIPSES)) / max(1, len(parts.words))


def _bullet_lines(parts: Parts) -> float:
    return sum(line.startswith(BULLETS) for line in parts.lines) / max(1, len(parts.lines))


def _ellipsis_lines(parts: Parts) -> float:
    return sum(line.endswith(ELLIPSES) for line in parts.lines) / max(1, len(parts.lines))


def _lettered(parts: Parts) -> float:
    lettered = sum(any(map(str.isalpha, word)) for word in parts.words)
    return lettered / max(1, len(parts.words))


def _stop_words(parts: Parts) -> float:
    return len({word.strip(MARKS).lower() for word in parts.words} & STOP_WORDS)


RULES = {
    "words": Rule(lambda parts: len(parts.words), 50, 100_000),
    "mean_word_length": Rule(_mean_length, 3, 10),
    "hash_ratio": Rule(_hashes, 0, 0.1),  # number signs to words
    "ellipsis_ratio": Rule(_ellipses, 0, 0.1),  # ellipses to words
    "bullet_lines": Rule(_bullet_lines, 0, 0.9),  # share of lines
    "ellipsis_lines": Rule(_ellipsis_lines, 0, 0.3),
    "lettered_words": Rule(_lettered, 0.8, 1),  # share of words with a letter
    "stop_words": Rule(_stop_words, 2, len(STOP_WORDS)),  # different ones, English
}
