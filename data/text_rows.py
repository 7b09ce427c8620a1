"""Rows of texts that are read separately: the texts of a text pair, or one slice of a document.

A text is framed as [bos, t1 .. tn, eos], without an id that the tokenizer lacks, and cut to
`text_length` tokens, of which the last is eos.
With a seed the rows are permuted anew in every epoch. Without a seed they are one pass in order.
"""

import functools
from typing import NamedTuple, Protocol

import numpy as np

from data.packing import DOCUMENT_STREAM, DocumentSlice, PackedRows, frame_ids, permutation
from data.store import TokenStore
from errors import DataError


class TextSpec(Protocol):
    """The specification of an objective's rows (`objectives.RowSpec`)."""

    @property
    def text_length(self) -> int:
        """The number of positions of each text."""

    @property
    def overlap(self) -> int:
        """The number of framed tokens that a slice shares with the next one."""

    @property
    def row_kind(self) -> str:
        """The kind of rows: packed, slices or text_pairs."""

    @property
    def n_texts(self) -> int:
        """The number of texts per row."""


class TextIndex(NamedTuple):
    """An index with an entry per row: a range of documents, and the first token of each."""

    first_document: np.ndarray
    end_document: np.ndarray
    start_token: np.ndarray


class TextRows:
    """Rows of at most `n_texts` texts, by number."""

    def __init__(
        self, store: TokenStore, index: TextIndex, text_length: int, n_texts: int, seed: int | None
    ):
        self.store, self.seed = store, seed
        frame = frame_ids(store, 0)
        self._before, self._after = ([i] * (i >= 0) for i in frame)
        self.row_length = text_length * n_texts  # Positions of a row.
        self.epoch_length = len(index.first_document) * self.row_length  # Positions of one epoch.
        self.is_endless = seed is not None
        self._index, self._lengths = index, store.lengths
        self._max_text_tokens = text_length - frame.size  # Tokens between bos and eos.
        self._row_order = functools.lru_cache(maxsize=2)(self._permute_rows)

    def row(self, index: int) -> list[DocumentSlice]:
        """Returns the texts of a row; none after the end of a single pass."""
        epoch, rank = divmod(index, len(self._index.first_document))
        if self.seed is None and epoch:
            return []
        row = rank if self.seed is None else int(self._row_order(epoch)[rank])
        first, end, token = (int(column[row]) for column in self._index)
        return [DocumentSlice(self._with_specials(d, token), d, token) for d in range(first, end)]

    def _with_specials(self, document: int, token: int) -> np.ndarray:
        stop = min(token + self._max_text_tokens, int(self._lengths[document]))
        ids = self.store.slice(document, token, stop)
        return np.concatenate([self._before, ids, self._after]).astype(np.int32)

    def _permute_rows(self, epoch: int) -> np.ndarray:
        return permutation(self.seed or 0, epoch, DOCUMENT_STREAM, len(self._index.first_document))


def index_text_pairs(store: TokenStore, n_texts: int = 2) -> TextIndex:
    """Returns an index with a row for each text pair.

    Raises:
        DataError: if the store has no text pairs, or no text pair has `n_texts` texts.
    """
    if store.record_offsets is None:
        raise DataError(f"{store.folder} holds documents, no text pairs; build the store of pairs")
    starts = np.asarray(store.record_offsets)
    if (max_texts := int(np.diff(starts).max())) < n_texts:
        raise DataError(
            f"{store.folder}: no text pair has more than {max_texts - 2} hard negatives, "
            f"contrastive.hard_negatives is {n_texts - 2}; set it to {max_texts - 2}"
        )
    return TextIndex(starts[:-1], starts[1:], np.zeros(len(starts) - 1, np.int64))


def index_slices(store: TokenStore, max_tokens: int) -> TextIndex:
    """Returns an index with a row for each `max_tokens` tokens of a document, fewer at its end."""
    counts = -(-store.lengths // max_tokens)
    documents = np.repeat(np.arange(len(counts)), counts)
    numbers = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    return TextIndex(documents, documents + 1, numbers * max_tokens)


def make_row_source(
    store: TokenStore, spec: TextSpec, seed: int | None = None
) -> PackedRows | TextRows:
    """Returns the rows of a store as `spec` describes them; with a seed they are endless."""
    if spec.row_kind == "packed":
        return PackedRows(store, spec.text_length, spec.overlap, seed)
    index = (
        index_text_pairs(store, spec.n_texts)
        if spec.row_kind == "text_pairs"
        else index_slices(store, spec.text_length - frame_ids(store, 0).size)
    )
    return TextRows(store, index, spec.text_length, spec.n_texts, seed)
