"""Packing: rows of tokens from documents of any length, by number and without state.

A document of n tokens is framed as [bos, t1 .. tn, eos]. It takes n + 2 - overlap positions. With
overlap 1, for objectives that predict the next token, the inputs are framed[:-1] and the targets
framed[1:]. With overlap 0 each token is read and predicted at its own position. Positions s to e of
a document need the tokens framed[s : e + overlap], which are a slice. An epoch is all documents in
a new order, one after another. Epochs follow each other without a gap, and rows are cut from that
stream. The rows that begin in an epoch are shuffled too, otherwise a batch would be one passage of
a long document.
"""

import functools
from typing import NamedTuple

import numpy as np

from data.store import TokenStore
from errors import DataError

# Streams of random numbers: the order of documents, the order of rows, the content of a row.
DOCUMENT_STREAM, ROW_STREAM, EXAMPLE_STREAM = 1, 2, 3


class DocumentSlice(NamedTuple):
    """A slice is a stretch of a framed document."""

    tokens: np.ndarray  # int32, framed[start : start + positions + overlap]
    document: int
    start: int
    weights: np.ndarray | None = None  # Loss weight of each position; None: all are 1.


class PackedRows:
    """Packed rows of a store of documents.

    With a seed the rows are endless and shuffled anew in every epoch. Without a seed they are one
    pass in order, whose last row is short.
    """

    def __init__(self, store: TokenStore, row_length: int, overlap: int, seed: int | None = None):
        if store.bos < 0 or store.eos < 0:
            missing = "bos" if store.bos < 0 else "eos"
            raise DataError(
                f"{store.folder}: the tokenizer has no {missing} token, which frames documents; "
                f"add <|{missing}|> to its tokenizer.json"
            )
        self.store = store
        self.row_length = row_length
        self.overlap = overlap
        self.seed = seed
        self._lengths = store.lengths + 2 - overlap
        self.epoch_length = int(self._lengths.sum())  # Positions of one epoch.
        self.is_endless = seed is not None
        self._document_order = functools.lru_cache(maxsize=3)(self._order_documents)
        self._row_order = functools.lru_cache(maxsize=2)(self._order_rows)

    def row(self, index: int) -> list[DocumentSlice]:
        """Returns the slices of a row, which fill it; fewer at the end of a single pass."""
        slices: list[DocumentSlice] = []
        position = self._shuffled_index(index) * self.row_length
        end = position + self.row_length
        while position < (end if self.is_endless else min(end, self.epoch_length)):
            epoch, offset = divmod(position, self.epoch_length)
            order, ends = self._document_order(epoch)
            rank = int(np.searchsorted(ends, offset, side="right"))
            while position < end and rank < len(ends):
                document = int(order[rank])
                length = int(self._lengths[document])
                start = offset - (int(ends[rank]) - length)
                stop = min(length, start + end - position)
                tokens = self._with_specials(document, start, stop + self.overlap)
                weights = self._slice_weights(document, start, stop)
                slices.append(DocumentSlice(tokens, document, start, weights))
                position += stop - start
                offset += stop - start
                rank += 1
        return slices

    def _shuffled_index(self, index: int) -> int:
        """Returns the number in the stream of the row that is shuffled to `index`."""
        if self.seed is None:
            return index
        epoch = index * self.row_length // self.epoch_length
        first = -(-epoch * self.epoch_length // self.row_length)
        return first + int(self._row_order(epoch)[index - first])

    def _with_specials(self, document: int, start: int, stop: int) -> np.ndarray:
        """Returns framed[start:stop] of a document."""
        n = int(self._lengths[document]) - 2 + self.overlap
        out = np.empty(stop - start, np.int32)
        low, high = max(start, 1), min(stop, n + 1)
        out[low - start : high - start] = self.store.slice(document, low - 1, high - 1)
        if start == 0:
            out[0] = self.store.bos
        if stop == n + 2:
            out[-1] = self.store.eos
        return out

    def _slice_weights(self, document: int, start: int, stop: int) -> np.ndarray | None:
        """Returns the loss weights of positions `start` to `stop`.

        With overlap 0 a position has the weight of its token, with overlap 1 that of the next
        token. bos has weight 0, eos has the weight of the last token.
        """
        n = int(self._lengths[document]) - 2 + self.overlap
        # Token t has position t + 1 of the framed document, and eos follows the last token.
        first, end = start + self.overlap - 1, stop + self.overlap - 1
        weights = self.store.weights(document, max(first, 0), min(end, n))
        last = self.store.weights(document, n - 1, n)
        if weights is None or last is None:
            return None
        out = np.zeros(end - first, np.float32)
        out[max(-first, 0) : len(out) - max(end - n, 0)] = weights
        if end > n:
            out[-1] = last[0]
        return out

    def _order_documents(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the order of the documents in an epoch, and the position where each one ends."""
        if self.seed is None:
            return np.arange(len(self._lengths)), np.cumsum(self._lengths)
        order = permutation(self.seed, epoch, DOCUMENT_STREAM, len(self._lengths))
        return order, np.cumsum(self._lengths[order])

    def _order_rows(self, epoch: int) -> np.ndarray:
        first, end = (-(-e * self.epoch_length // self.row_length) for e in (epoch, epoch + 1))
        return permutation(self.seed or 0, epoch, ROW_STREAM, end - first)


def permutation(seed: int, index: int, stream: int, size: int) -> np.ndarray:
    """Returns a permutation, the order of `size` outputs of Philox.

    It is the same under every version of numpy.
    """
    return np.argsort(philox(seed, index, stream).random_raw(size), kind="stable")


def philox(seed: int, index: int, stream: int) -> np.random.Philox:
    """Returns a bit generator that depends on the arguments alone (Salmon et al., 2011)."""
    return np.random.Philox(counter=(0, 0, 0, stream), key=(seed, index))
