"""Repetition within a document, as Gopher measures it (Rae et al., arXiv:2112.11446, table A1).

A line, a paragraph or an n-gram is a duplicate if the document had the same one before; its first
occurrence is no duplicate. Words are separated by white space, lines are stripped of it, and
paragraphs are separated by blank lines. Shares of characters do not count white space between
words; a character in several duplicate n-grams counts once. The paper defines none of this.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from data.prepare.words import Hashes

TOP_NGRAMS = (2, 3, 4)  # Lengths n of which the most frequent n-gram is measured.
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)  # Lengths n of which all duplicate n-grams are measured.


class DuplicateParts(NamedTuple):
    """The duplicates among the lines or the paragraphs of a document."""

    share: float  # Share of the parts.
    character_share: float  # Share of the characters.


def find_duplicates(parts: Iterable[str]) -> DuplicateParts:
    """Returns how many of the parts of a document, and of their characters, are duplicates."""
    seen: set[int] = set()
    count = duplicates = characters = duplicate_characters = 0
    for part in parts:
        count += 1
        characters += len(part)
        key = hash(part)  # It has 64 bits and needs less memory than the part.
        if key in seen:
            duplicates += 1
            duplicate_characters += len(part)
        seen.add(key)
    return DuplicateParts(duplicates / max(1, count), duplicate_characters / max(1, characters))


def ngram_shares(word_hashes: Hashes, lengths: Int32[np.ndarray, " W"]) -> dict[int, float]:
    """Returns, by n, the share of the characters in the top n-gram or in duplicate n-grams.

    Args:
        word_hashes: The hash of each word.
        lengths: The number of characters of each word.
    """
    shares = dict.fromkeys(TOP_NGRAMS + DUPLICATE_NGRAMS, 0.0)
    characters = max(1, int(lengths.sum()))
    word_ids = ngram_ids = _number(word_hashes)
    for n in range(2, max(shares) + 1):
        if len(word_ids) < n:
            break
        ngram_ids = _extend(ngram_ids, word_ids, n)
        if len(ngram_ids) == ngram_ids.max() + 1:
            break  # No n-gram occurs twice, so no longer one does.
        repeated = _top_ngram(ngram_ids, lengths, n) if n in TOP_NGRAMS else _is_later(ngram_ids)
        shares[n] = int(lengths[_covered(repeated, n)].sum()) / characters
    return shares


def _extend(shorter_ids: np.ndarray, word_ids: np.ndarray, n: int) -> Int32[np.ndarray, " N"]:
    """Returns a number for each n-gram at i: its first n - 1 words and the word at i + n - 1."""
    keys = shorter_ids[: len(word_ids) - n + 1].astype(np.int64)
    keys *= len(word_ids)
    keys += word_ids[n - 1 :]
    return _number(keys)


def _number(keys: np.ndarray) -> Int32[np.ndarray, " W"]:
    """Returns a number for each key, equal for equal keys, from 0 to their count - 1.

    `np.unique` needs twice the memory.
    """
    order = np.argsort(keys)
    ordered = keys[order]
    is_new = ordered[1:] != ordered[:-1]
    del ordered
    numbers = np.zeros(len(keys), np.int32)
    numbers[order[1:]] = np.cumsum(is_new, dtype=np.int32)
    return numbers


def _top_ngram(ngram_ids: np.ndarray, lengths: np.ndarray, n: int) -> Bool[np.ndarray, " N"]:
    """Returns where the most frequent n-gram is; of equally frequent ones, the longest."""
    counts = np.bincount(ngram_ids)
    places = np.flatnonzero((counts == counts.max())[ngram_ids])
    sizes = sum(lengths[places + i] for i in range(n))
    return ngram_ids == ngram_ids[places[np.argmax(sizes)]]


def _is_later(ngram_ids: np.ndarray) -> Bool[np.ndarray, " N"]:
    """Returns which n-grams occurred before."""
    first = np.zeros(ngram_ids.max() + 1, np.int32)
    # Of several values that are assigned to one place, the last one stays.
    first[ngram_ids[::-1]] = np.arange(len(ngram_ids) - 1, -1, -1, dtype=np.int32)
    later = np.ones(len(ngram_ids), bool)
    later[first] = False
    return later


def _covered(ngrams: Bool[np.ndarray, " N"], n: int) -> Bool[np.ndarray, " W"]:
    """Returns the words of the n-grams that begin where `ngrams` is true."""
    covered = np.zeros(len(ngrams) + n - 1, bool)
    for i in range(n):
        covered[i : i + len(ngrams)] |= ngrams
    return covered
