"""Rows of tokens from documents of any length, by number and without state.

A document of n tokens is framed as [bos, t1 .. tn, eos]. It takes n + 2 - overlap positions, where
overlap 1 is for objectives that predict the next token (inputs framed[:-1], targets framed[1:]) and
overlap 0 for those that see each token where it stands. Positions s to e of a document need the
tokens framed[s : e + overlap]: a piece. An epoch is all documents in a new order, one after
another; epochs follow each other without a gap, and rows are cut from that stream. The rows that
begin in an epoch are shuffled too, else a batch would be one passage of a long document.
"""

import functools
from typing import NamedTuple

import numpy as np

from data.store import Store
from errors import DataError

DOCUMENTS, ROWS, EXAMPLES = 1, 2, 3  # purposes of random numbers


class Piece(NamedTuple):
    tokens: np.ndarray  # int32, framed[start : start + positions + overlap]
    document: int
    start: int
    weights: np.ndarray | None = None  # in the loss, of its positions; None: all 1


class Packed:
    """The rows of a store. With a seed they go on for ever and reshuffle every epoch; without, they
    are one pass in order, whose last row is short."""

    def __init__(self, store: Store, length: int, overlap: int, seed: int | None = None):
        if store.bos < 0 or store.eos < 0:
            lacks = "bos" if store.bos < 0 else "eos"
            raise DataError(
                f"{store.folder}: the tokenizer has no {lacks} token, which frames documents; "
                f"add <|{lacks}|> to its tokenizer.json"
            )
        self.store = store
        self.length = length
        self.overlap = overlap
        self.seed = seed
        self._sizes = store.lengths + 2 - overlap
        self.positions = int(self._sizes.sum())  # of one epoch
        self.endless = seed is not None
        self._documents = functools.lru_cache(maxsize=3)(self._order_documents)
        self._rows = functools.lru_cache(maxsize=2)(self._order_rows)

    def row(self, index: int) -> list[Piece]:
        """The pieces of a row, which fill `length` positions; fewer at the end of a single pass."""
        pieces: list[Piece] = []
        at = self._shuffled(index) * self.length
        end = at + self.length
        while at < (end if self.endless else min(end, self.positions)):
            epoch, place = divmod(at, self.positions)
            order, ends = self._documents(epoch)
            rank = int(np.searchsorted(ends, place, side="right"))
            while at < end and rank < len(ends):
                document = int(order[rank])
                size = int(self._sizes[document])
                start = place - (int(ends[rank]) - size)
                stop = min(size, start + end - at)
                tokens = self._framed(document, start, stop + self.overlap)
                pieces.append(Piece(tokens, document, start, self._weights(document, start, stop)))
                at += stop - start
                place += stop - start
                rank += 1
        return pieces

    def _shuffled(self, index: int) -> int:
        """The row of the stream that is served as row `index`, out of those of its epoch."""
        if self.seed is None:
            return index
        epoch = index * self.length // self.positions
        first = -(-epoch * self.positions // self.length)
        return first + int(self._rows(epoch)[index - first])

    def _framed(self, document: int, start: int, stop: int) -> np.ndarray:
        """framed[start:stop] of a document."""
        size = int(self._sizes[document]) - 2 + self.overlap  # n
        out = np.empty(stop - start, np.int32)
        low, high = max(start, 1), min(stop, size + 1)
        out[low - start : high - start] = self.store.slice(document, low - 1, high - 1)
        if start == 0:
            out[0] = self.store.bos
        if stop == size + 2:
            out[-1] = self.store.eos
        return out

    def _weights(self, document: int, start: int, stop: int) -> np.ndarray | None:
        """Of what stands at positions `start` to `stop`, or is predicted there (overlap 1): bos
        counts for nothing, eos as the token before it."""
        size = int(self._sizes[document]) - 2 + self.overlap
        own = self.store.weights(document, 0, size)
        if own is None:
            return None
        framed = np.concatenate([[0], own, own[-1:]])
        return framed[start + self.overlap : stop + self.overlap].astype(np.float32)

    def _order_documents(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the documents in an epoch and where each one ends."""
        if self.seed is None:
            return np.arange(len(self._sizes)), np.cumsum(self._sizes)
        order = permutation(self.seed, epoch, DOCUMENTS, len(self._sizes))
        return order, np.cumsum(self._sizes[order])

    def _order_rows(self, epoch: int) -> np.ndarray:
        first, after = (-(-e * self.positions // self.length) for e in (epoch, epoch + 1))
        return permutation(self.seed or 0, epoch, ROWS, after - first)


def permutation(seed: int, index: int, purpose: int, size: int) -> np.ndarray:
    """The order of `size` words of Philox: the same under every version of numpy."""
    return np.argsort(philox(seed, index, purpose).random_raw(size), kind="stable")


def philox(seed: int, index: int, purpose: int) -> np.random.Philox:
    """Random bits that are a function of the arguments alone (Salmon et al., 2011)."""
    return np.random.Philox(counter=(0, 0, 0, purpose), key=(seed, index))
