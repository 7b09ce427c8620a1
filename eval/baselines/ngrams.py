"""Interpolated n-gram models (Witten and Bell 1991), in bits of a text given another text.

A text is a list of passages of symbols. A complete document ends with a symbol of its own, which is
predicted and paid like any other. The context of a symbol never reaches into another passage.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

CHUNK_SYMBOLS = 4 << 20  # Symbols that are counted at a time, which bounds the memory.


class Passage(NamedTuple):
    """A stretch of a document."""

    symbols: Integer[np.ndarray, " N"]  # From 0 to the size of the alphabet, without the end.
    is_start: bool = True  # Whether the document begins here.
    is_end: bool = True  # Whether the document ends here.


class CountTable(NamedTuple):
    """Counts of n-grams and of their contexts; an n-gram is its context times the radix + symbol.

    `codes` and `contexts` are sorted.
    """

    codes: Int[np.ndarray, " G"]
    counts: Int[np.ndarray, " G"]
    contexts: Int[np.ndarray, " H"]
    context_counts: Int[np.ndarray, " H"]
    context_types: Int[np.ndarray, " H"]  # Number of different symbols that follow a context.


def bits_by_order(
    train: Sequence[Passage], test: Sequence[Passage], n_symbols: int, max_order: int
) -> list[float]:
    """Returns the bits of `test` under the models of orders 0 to `max_order` of `train`.

    A model of order k predicts a symbol from the k symbols before it. It gives the share
    n / (n + t) to the relative frequency in its context, which it has seen n times with t different
    successors, and the rest to the model of order k - 1; below order 0 all symbols are equally
    likely.
    """
    radix = n_symbols + 2  # The alphabet, the end of a document, and what precedes a passage.
    n_targets = sum(len(p.symbols) + p.is_end for p in test)
    probability = np.full(n_targets, 1 / (n_symbols + 1))
    bits = []
    for order in range(max_order + 1):
        table = _count(train, radix, order)
        start = 0
        for codes in _ngrams(test, radix, order):
            part = slice(start, start + len(codes))
            probability[part] = _interpolate(table, codes, radix, probability[part])
            start += len(codes)
        bits.append(float(-np.log2(probability).sum()))
    return bits


def _interpolate(
    table: CountTable,
    codes: Int[np.ndarray, " N"],
    radix: int,
    lower: Float[np.ndarray, " N"],
) -> Float[np.ndarray, " N"]:
    """Returns the probability of each n-gram's last symbol from that of the order below."""
    count = _look_up(table.codes, table.counts, codes)
    n = _look_up(table.contexts, table.context_counts, codes // radix)
    types = _look_up(table.contexts, table.context_types, codes // radix)
    return np.where(n > 0, (count + types * lower) / np.maximum(n + types, 1), lower)


def _look_up(
    keys: Int[np.ndarray, " G"], values: Int[np.ndarray, " G"], queries: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """Returns the value of each query; 0 for those that are missing."""
    if not len(keys):
        return np.zeros(len(queries), np.int64)
    index = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[index] == queries, values[index], 0)


def _count(passages: Sequence[Passage], radix: int, order: int) -> CountTable:
    codes, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for chunk in _ngrams(passages, radix, order):
        new_codes, new_counts = np.unique(chunk, return_counts=True)
        if not len(codes):
            codes, counts = new_codes, new_counts
            continue
        # Inserting takes far less memory than sorting all codes again.
        index = np.searchsorted(codes, new_codes)
        is_known = codes[np.minimum(index, len(codes) - 1)] == new_codes
        counts[index[is_known]] += new_counts[is_known]
        is_new = ~is_known
        codes = np.insert(codes, index[is_new], new_codes[is_new])
        counts = np.insert(counts, index[is_new], new_counts[is_new])
    histories = codes // radix
    starts = np.flatnonzero(np.diff(histories, prepend=-1))
    context_counts = np.add.reduceat(counts, starts) if len(starts) else counts
    types = np.diff(starts, append=len(codes))
    return CountTable(codes, counts, histories[starts], context_counts, types)


def _ngrams(passages: Sequence[Passage], radix: int, order: int) -> Iterator[Int[np.ndarray, " N"]]:
    """Yields the n-grams of order + 1 symbols of all passages, in their order, in chunks."""
    parts: list[np.ndarray] = []
    is_target: list[np.ndarray] = []
    size = 0
    for framed, mask in (piece for passage in passages for piece in _frame(passage, radix, order)):
        parts.append(framed)
        is_target.append(mask)
        size += len(framed)
        if size >= CHUNK_SYMBOLS:
            yield _codes(np.concatenate(parts), np.concatenate(is_target), radix, order)
            parts, is_target, size = [], [], 0
    if parts:
        yield _codes(np.concatenate(parts), np.concatenate(is_target), radix, order)


def _frame(
    passage: Passage, radix: int, order: int
) -> Iterator[tuple[Int[np.ndarray, " M"], Bool[np.ndarray, " M"]]]:
    """Yields a passage with `order` symbols before it, and its end; and which are predicted.

    A long passage is yielded in pieces, each with the `order` symbols before it.
    """
    end, unknown = radix - 2, radix - 1
    head = np.full(order, end if passage.is_start else unknown, np.int64)
    n_symbols = len(passage.symbols)
    for start in range(0, max(n_symbols, 1), CHUNK_SYMBOLS):
        stop = min(start + CHUNK_SYMBOLS, n_symbols)
        tail = np.full(int(passage.is_end and stop == n_symbols), end, np.int64)
        before = passage.symbols[max(start - order, 0) : start].astype(np.int64)
        symbols = passage.symbols[start:stop].astype(np.int64)
        framed = np.concatenate([head[: order - len(before)], before, symbols, tail])
        yield framed, np.arange(len(framed)) >= order


def _codes(
    symbols: Int[np.ndarray, " M"], is_target: Bool[np.ndarray, " M"], radix: int, order: int
) -> Int[np.ndarray, " N"]:
    n = max(len(symbols) - order, 0)
    codes = np.zeros(n, np.int64)
    for first in range(order + 1):
        codes *= radix
        codes += symbols[first : first + n]
    return codes[is_target[order:]]  # `order` symbols precede each passage.
