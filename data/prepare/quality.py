"""Quality rules: those of Gopher (Rae et al., arXiv:2112.11446, appendix A.1.1 and table A1).

A rule is a measure of a text and the bounds, both included, within which the measure must lie.
Words are separated by white space, and lines are those with a character on them. The paper defines
neither. `repetition` describes the measures of table A1. One part of the paper is left out on
purpose: its filter for safe search.
"""

import functools
import itertools
import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from data.prepare import repetition
from data.prepare.words import WHITE_SPACE, Hashes, hash_words, iter_pieces
from errors import ConfigError
from settings.types import did_you_mean

BULLETS = ("\u2022", "\u2023", "\u25cf", "\u25e6", "\u2043", "-", "*")
ELLIPSES = ("...", "\u2026")
# Characters that are stripped from both ends of a word.
PUNCTUATION = string.punctuation + "\u201c\u201d\u2018\u2019\u2026\u2013\u2014"
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})

LINE_FEED = re.compile("\n")

Bounds = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class WordTable:
    """The words of a text, as numbers, which need less memory than strings."""

    hashes: Hashes
    lengths: Int32[np.ndarray, " W"]  # Number of characters of each word.
    n_lettered: int  # Number of words with a letter.
    stop_words: frozenset[str]  # The stop words that occur.


@dataclass
class LineTable:
    """Counts of the lines of a text that have a character on them."""

    n_lines: int = 0
    n_bullets: int = 0  # Lines that begin with a bullet.
    n_ellipses: int = 0  # Lines that end with an ellipsis.


@dataclass(frozen=True)
class TextParts:
    """A text with tables of its parts, each made once for all rules."""

    text: str

    @functools.cached_property
    def words(self) -> WordTable:
        """The words of the text."""
        hashes, lengths, n_lettered, stop_words = [], [], 0, set[str]()
        for piece in iter_pieces(self.text, WHITE_SPACE):
            words = piece.split()
            hashes.append(hash_words(words))
            lengths.append(np.fromiter(map(len, words), np.int32, len(words)))
            n_lettered += sum(word.isalpha() or any(map(str.isalpha, word)) for word in words)
            stop_words |= {word.strip(PUNCTUATION).lower() for word in words} & STOP_WORDS
        return WordTable(
            np.concatenate(hashes or [np.zeros(0, np.uint64)]),
            np.concatenate(lengths or [np.zeros(0, np.int32)]),
            n_lettered,
            frozenset(stop_words),
        )

    @functools.cached_property
    def lines(self) -> LineTable:
        """The lines of the text."""
        table = LineTable()
        for line in filter(None, _iter_lines(self.text)):
            table.n_lines += 1
            table.n_bullets += line.startswith(BULLETS)
            table.n_ellipses += line.endswith(ELLIPSES)
        return table

    @functools.cached_property
    def duplicate_lines(self) -> repetition.DuplicateParts:
        """The lines that occurred before."""
        return repetition.find_duplicates(filter(None, _iter_lines(self.text)))

    @functools.cached_property
    def duplicate_paragraphs(self) -> repetition.DuplicateParts:
        """The paragraphs that occurred before."""
        groups = itertools.groupby(_iter_lines(self.text), bool)
        return repetition.find_duplicates("\n".join(lines) for is_text, lines in groups if is_text)

    @functools.cached_property
    def ngram_shares(self) -> dict[int, float]:
        """By n, the share of the characters in the top n-gram or in duplicate n-grams."""
        return repetition.ngram_shares(self.words.hashes, self.words.lengths)


class QualityRule(NamedTuple):
    """A quality rule is a measure with default bounds."""

    measure: Callable[[TextParts], float]
    low: float
    high: float


def failed_rules(text: str, bounds: Bounds) -> dict[str, float]:
    """Returns the rules that `text` fails, each with the value of its measure."""
    parts = TextParts(text)
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


def _iter_lines(text: str) -> Iterator[str]:
    """Yields the lines of a text without the white space around them."""
    for number, piece in enumerate(iter_pieces(text, LINE_FEED)):
        # A piece begins with the line feed that ends the line before.
        yield from map(str.strip, (piece[1:] if number else piece).splitlines())


def _per_word(count: float, parts: TextParts) -> float:
    return count / max(1, len(parts.words.hashes))


def _per_line(count: float, parts: TextParts) -> float:
    return count / max(1, parts.lines.n_lines)


def _repeated_ngrams(n: int, high: float) -> QualityRule:
    return QualityRule(lambda parts: parts.ngram_shares[n], 0, high)


RULES = {
    "words": QualityRule(lambda parts: len(parts.words.hashes), 50, 100_000),
    "mean_word_length": QualityRule(
        lambda parts: _per_word(int(parts.words.lengths.sum()), parts), 3, 10
    ),
    # Ratio of number signs to words.
    "hash_ratio": QualityRule(lambda parts: _per_word(parts.text.count("#"), parts), 0, 0.1),
    # Ratio of ellipses to words.
    "ellipsis_ratio": QualityRule(
        lambda parts: _per_word(sum(map(parts.text.count, ELLIPSES)), parts), 0, 0.1
    ),
    "bullet_lines": QualityRule(lambda parts: _per_line(parts.lines.n_bullets, parts), 0, 0.9),
    "ellipsis_lines": QualityRule(lambda parts: _per_line(parts.lines.n_ellipses, parts), 0, 0.3),
    # Share of words with a letter.
    "lettered_words": QualityRule(lambda parts: _per_word(parts.words.n_lettered, parts), 0.8, 1),
    # Number of different English stop words.
    "stop_words": QualityRule(lambda parts: len(parts.words.stop_words), 2, len(STOP_WORDS)),
    # Shares of the lines and paragraphs that occurred before, and of the characters on them.
    "duplicate_lines": QualityRule(lambda parts: parts.duplicate_lines.share, 0, 0.3),
    "duplicate_paragraphs": QualityRule(lambda parts: parts.duplicate_paragraphs.share, 0, 0.3),
    "duplicate_line_characters": QualityRule(
        lambda parts: parts.duplicate_lines.character_share, 0, 0.2
    ),
    "duplicate_paragraph_characters": QualityRule(
        lambda parts: parts.duplicate_paragraphs.character_share, 0, 0.2
    ),
    # Shares of the characters in the most frequent n-gram, and in n-grams that occurred before.
    "top_2gram": _repeated_ngrams(2, 0.2),
    "top_3gram": _repeated_ngrams(3, 0.18),
    "top_4gram": _repeated_ngrams(4, 0.16),
    "duplicate_5grams": _repeated_ngrams(5, 0.15),
    "duplicate_6grams": _repeated_ngrams(6, 0.14),
    "duplicate_7grams": _repeated_ngrams(7, 0.13),
    "duplicate_8grams": _repeated_ngrams(8, 0.12),
    "duplicate_9grams": _repeated_ngrams(9, 0.11),
    "duplicate_10grams": _repeated_ngrams(10, 0.1),
}
