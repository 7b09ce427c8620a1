"""Packing: rows of tokens from documents of any length, by number and without state.

A document of n tokens is framed as [bos, t1 .. tn, eos], without an id that the tokenizer lacks. It
takes n + 2 - overlap positions, or fewer without them. With overlap 1, for objectives that predict
the next token, the inputs are framed[:-1] and the targets framed[1:]. With overlap 0 each token is
read and predicted at its own position. Positions s to e of a document need the tokens
framed[s : e + overlap], which are a slice.

An epoch is all documents in a new order, one after another. Epochs follow each other without a gap,
and rows are cut from that stream. The rows that begin in an epoch are shuffled too, otherwise a
batch would be one passage of a long document.

Where documents have groups, such as languages, those of small groups may repeat within an epoch
(`data/groups/shares.py`).
"""

import functools
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from data.groups.shares import epoch_documents
from data.random_streams import RandomStream, permutation
from data.store import TokenStore
from errors import DataError


class DocumentSlice(NamedTuple):
    """A slice is a stretch of a framed document."""

    tokens: np.ndarray  # int32, framed[start : start + positions + overlap]
    document: int
    start: int
    weights: np.ndarray | None = None  # Loss weight of each position; None: all are 1.
    record: int = -1  # Number of the record in the split that the slice is of; -1: none.
    image: np.ndarray | None = None  # uint8 [height width channels]; None: no image.


class FrameIds(NamedTuple):
    """The ids around a document; -1 is none."""

    before: int
    after: int

    @property
    def size(self) -> int:
        """The number of ids around a document."""
        return (self.before >= 0) + (self.after >= 0)


class FramedStore(Protocol):
    """The part of a token store that says what frames its documents."""

    folder: Path
    bos: int
    eos: int


def frame_ids(store: FramedStore, overlap: int) -> FrameIds:
    """Returns the ids around each document of a store.

    With overlap 1 the first token is predicted too, from bos, or from eos of the document before it
    if the tokenizer has no bos.

    Raises:
        DataError: if a first token would be predicted from nothing.
    """
    before = store.eos if overlap and store.bos < 0 else store.bos
    if overlap and before < 0:
        raise DataError(
            f"{store.folder}: the tokenizer has neither a bos nor an eos token, from which the "
            "first token of a document is predicted; name one in its tokenizer_config.json"
        )
    return FrameIds(before, store.eos)


class PackedRows:
    """Packed rows of a store of documents.

    With a seed the rows are endless and shuffled anew in every epoch. Without a seed they are one
    pass in order, whose last row is short.
    """

    def __init__(self, store: TokenStore, row_length: int, overlap: int, seed: int | None = None):
        self.store = store
        self._frame = frame_ids(store, overlap)
        self.n_before = int(self._frame.before >= 0)  # Ids before the text of a document.
        self.row_length = row_length
        self.overlap = overlap
        self.seed = seed
        self._lengths = store.lengths + self._frame.size - overlap
        self.is_endless = seed is not None
        self._documents = np.arange(len(self._lengths))  # The documents of an epoch.
        if self.is_endless and store.groups is not None:
            self._documents = epoch_documents(self._lengths, store.groups, store.group_temperature)
        self.epoch_length = int(self._lengths[self._documents].sum())  # Positions of one epoch.
        self.unique_length = int(self._lengths.sum())  # Those of each document once.
        self.image_shape: tuple[int, ...] | None = None
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
        n, first = self._n_tokens(document), self.n_before
        out = np.empty(stop - start, np.int32)
        low, high = max(start, first), min(stop, n + first)
        out[low - start : high - start] = self.store.slice(document, low - first, high - first)
        if start < first:
            out[0] = self._frame.before
        if stop > n + first:
            out[-1] = self._frame.after
        return out

    def _n_tokens(self, document: int) -> int:
        return int(self._lengths[document]) - self._frame.size + self.overlap

    def _slice_weights(self, document: int, start: int, stop: int) -> np.ndarray | None:
        """Returns the loss weights of positions `start` to `stop`.

        With overlap 0 a position has the weight of its token, with overlap 1 that of the next
        token. bos has weight 0, eos has the weight of the last token.
        """
        n = self._n_tokens(document)
        # Token t has position t + 1 of a document behind bos, and eos follows the last token.
        first, end = (i + self.overlap - self.n_before for i in (start, stop))
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
        ranks = permutation(self.seed, epoch, RandomStream.DOCUMENTS, len(self._documents))
        order = self._documents[ranks]
        return order, np.cumsum(self._lengths[order])

    def _order_rows(self, epoch: int) -> np.ndarray:
        first, end = (-(-e * self.epoch_length // self.row_length) for e in (epoch, epoch + 1))
        return permutation(self.seed or 0, epoch, RandomStream.ROWS, end - first)
