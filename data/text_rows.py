"""Rows of texts: those of a text pair, one slice of a document, or a prompt with two replies.

A text is framed as [bos, t1 .. tn, eos], without an id that the tokenizer lacks, and cut to
`text_length` tokens, of which the last is eos. Of a prompt and its replies the prompt is cut.
With a seed the rows are permuted anew in every epoch. Without a seed they are one pass in order.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from data.images.rows import ImagePrefix, ImageRows
from data.packing import DocumentSlice, PackedRows, frame_ids
from data.random_streams import RandomStream, permutation
from data.store import TokenStore
from errors import DataError

PREFERENCE_TEXTS = 3  # Texts of a preference: prompt, chosen, rejected.


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
        """The kind of rows: packed, slices, text_pairs, preferences or image_texts."""

    @property
    def n_texts(self) -> int:
        """The number of texts per row."""

    @property
    def image_prefix(self) -> tuple[int, int]:
        """The number and the id of the tokens in whose place the model puts an image."""


class TextIndex(NamedTuple):
    """An index with an entry per row: a range of documents, and the first token of each."""

    first_document: np.ndarray
    end_document: np.ndarray
    start_token: np.ndarray


ReadTexts = Callable[[int, int, int], list[np.ndarray]]  # (first, end document, token) -> texts


def read_separate_texts(
    store: TokenStore, text_length: int, first: int, end: int, token: int
) -> list[np.ndarray]:
    """Returns the documents `first` to `end` as [bos, t1 .. tn, eos], each from `token` on.

    They are cut at their end to `text_length` tokens.
    """
    frame = frame_ids(store, 0)
    before, after = ([i] * (i >= 0) for i in frame)
    texts = []
    for document in range(first, end):
        stop = min(token + text_length - frame.size, store.length(document))
        ids = store.slice(document, token, stop)
        texts.append(np.concatenate([before, ids, after]).astype(np.int32))
    return texts


def read_prompt_and_replies(
    store: TokenStore, text_length: int, first: int, end: int, token: int
) -> list[np.ndarray]:
    """Returns a prompt [bos, t1 .. tn] and its replies [t1 .. tn, eos], each of which follows it.

    Prompt and reply have at most `text_length` + 1 tokens. A prompt that is too long loses its
    beginning, the same for both replies. A reply that is too long without it loses its end and eos.
    """
    before, after = frame_ids(store, 1)
    ends = [after] * (after >= 0)
    prompt, *replies = (store.document(d)[token:] for d in range(first, end))
    replies = [np.append(reply, ends)[:text_length].astype(np.int32) for reply in replies]
    n_prompt = min(text_length - max(map(len, replies)), len(prompt))
    return [np.append(before, prompt[len(prompt) - n_prompt :]).astype(np.int32), *replies]


class TextRows:
    """Rows of texts, by number; a row is an entry of the index, as `read` reads it."""

    def __init__(self, index: TextIndex, row_length: int, seed: int | None, read: ReadTexts):
        self.seed = seed
        self.row_length = row_length  # Positions of a row.
        self.epoch_length = len(index.first_document) * row_length  # Positions of one epoch.
        self.unique_length = self.epoch_length
        self.is_endless = seed is not None
        self._index, self._read = index, read
        self.image_shape: tuple[int, ...] | None = None
        self._row_order = functools.lru_cache(maxsize=2)(self._permute_rows)

    def row(self, index: int) -> list[DocumentSlice]:
        """Returns the texts of a row; none after the end of a single pass."""
        epoch, rank = divmod(index, len(self._index.first_document))
        if self.seed is None and epoch:
            return []
        row = rank if self.seed is None else int(self._row_order(epoch)[rank])
        first, end, token = (int(column[row]) for column in self._index)
        texts = self._read(first, end, token)
        return [DocumentSlice(text, first + i, token, record=row) for i, text in enumerate(texts)]

    def _permute_rows(self, epoch: int) -> np.ndarray:
        n_rows = len(self._index.first_document)
        return permutation(self.seed or 0, epoch, RandomStream.DOCUMENTS, n_rows)


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


def index_preferences(store: TokenStore) -> TextIndex:
    """Returns an index with a row for each preference.

    Raises:
        DataError: if the store has no preferences.
    """
    starts = store.record_offsets
    if starts is None or (np.diff(starts) != PREFERENCE_TEXTS).any():
        raise DataError(f"{store.folder} holds no preferences; build the store of preferences")
    return TextIndex(starts[:-1], starts[1:], np.zeros(len(starts) - 1, np.int64))


def cut_sentence(store: TokenStore, text_length: int) -> str:
    """Returns a sentence on the preferences that do not fit rows; "" if all do."""
    before, after = frame_ids(store, 1)
    prompts, *replies = store.lengths.reshape(-1, PREFERENCE_TEXTS).T
    longest = np.max(replies, axis=0) + (after >= 0)
    n_cut, n_replies = (
        int((lengths > text_length).sum()) for lengths in (prompts + longest, longest)
    )
    if not n_cut:
        return ""
    ends = f", and {n_replies} of the replies their end" if n_replies else ""
    return (
        f"{n_cut:,} of {len(prompts):,} preferences do not fit {text_length} tokens: the prompts "
        f"lose their beginning{ends} (train.seq_len)"
    )


def make_row_source(
    store: TokenStore, spec: TextSpec, seed: int | None = None
) -> PackedRows | TextRows | ImageRows:
    """Returns the rows of a store as `spec` describes them; with a seed they are endless."""
    T = spec.text_length
    if spec.row_kind == "packed":
        return PackedRows(store, T, spec.overlap, seed)
    if spec.row_kind == "preferences":
        read = functools.partial(read_prompt_and_replies, store, T)
        return TextRows(index_preferences(store), T * spec.n_texts, seed, read)
    if spec.row_kind == "image_texts":
        return ImageRows(store, T, spec.overlap, ImagePrefix(*spec.image_prefix), seed)
    index = (
        index_text_pairs(store, spec.n_texts)
        if spec.row_kind == "text_pairs"
        else index_slices(store, T - frame_ids(store, 0).size)
    )
    read = functools.partial(read_separate_texts, store, T)
    return TextRows(index, T * spec.n_texts, seed, read)
