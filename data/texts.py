"""Rows of texts that are read alone: all texts of a record, or a piece of a document.

A text is framed as [bos, t1 .. tn, eos] and cut to `length` tokens, of which the last is eos. Rows
are permuted anew in every epoch; without a seed they are one pass in order.
"""

import functools
from typing import NamedTuple, Protocol

import numpy as np

from data.packing import DOCUMENTS, Packed, Piece, permutation
from data.store import Store
from errors import DataError


class Wanted(Protocol):
    """What an objective says of its rows (`objectives.Rows`)."""

    @property
    def text(self) -> int: ...

    @property
    def overlap(self) -> int: ...

    @property
    def reads(self) -> str: ...

    @property
    def texts(self) -> int: ...


class Spans(NamedTuple):
    """What rows are made of, an entry a row: documents `first` to `after`, each from a token on."""

    first: np.ndarray
    after: np.ndarray
    token: np.ndarray


class Texts:
    """Rows of `texts` texts at most, by number."""

    def __init__(self, store: Store, spans: Spans, length: int, texts: int, seed: int | None):
        if store.bos < 0 or store.eos < 0:
            raise DataError(
                f"{store.folder}: the tokenizer has no bos or no eos token, which frame texts; add "
                "<|bos|> and <|eos|> to its tokenizer.json"
            )
        self.store, self.seed = store, seed
        self.length = length * texts  # positions of a row
        self.positions = len(spans.first) * self.length  # of one epoch
        self.endless = seed is not None
        self._spans, self._sizes = spans, store.lengths
        self._room = length - 2  # for text
        self._order = functools.lru_cache(maxsize=2)(self._permuted)

    def row(self, index: int) -> list[Piece]:
        """Its texts; none beyond the end of a single pass."""
        epoch, place = divmod(index, len(self._spans.first))
        if self.seed is None and epoch:
            return []
        row = place if self.seed is None else int(self._order(epoch)[place])
        first, after, token = (int(column[row]) for column in self._spans)
        return [Piece(self._framed(d, token), d, token) for d in range(first, after)]

    def _framed(self, document: int, token: int) -> np.ndarray:
        stop = min(token + self._room, int(self._sizes[document]))
        ids = self.store.slice(document, token, stop)
        return np.concatenate([[self.store.bos], ids, [self.store.eos]]).astype(np.int32)

    def _permuted(self, epoch: int) -> np.ndarray:
        return permutation(self.seed or 0, epoch, DOCUMENTS, len(self._spans.first))


def records(store: Store, texts: int = 2) -> Spans:
    """A row for each record, of which one at least has so many texts."""
    if store.records is None:
        raise DataError(f"{store.folder} holds documents, no records; build the store of records")
    starts = np.asarray(store.records)
    if (most := int(np.diff(starts).max())) < texts:
        raise DataError(
            f"{store.folder}: no record has more than {most - 2} hard negatives, "
            f"contrastive.negatives asks for {texts - 2}; set it to {most - 2}"
        )
    return Spans(starts[:-1], starts[1:], np.zeros(len(starts) - 1, np.int64))


def pieces(store: Store, room: int) -> Spans:
    """A row for each stretch of `room` tokens of a document; the last one is shorter."""
    counts = -(-store.lengths // room)
    document = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    return Spans(document, document + 1, number * room)


def rows_of(store: Store, wanted: Wanted, seed: int | None = None) -> Packed | Texts:
    """The rows that an objective asks for; with a seed they go on for ever."""
    if wanted.reads == "packed":
        return Packed(store, wanted.text, wanted.overlap, seed)
    spans = (
        records(store, wanted.texts)
        if wanted.reads == "records"
        else pieces(store, wanted.text - 2)
    )
    return Texts(store, spans, wanted.text, wanted.texts, seed)
