"""Rows of an image and its text, by number: the text alone, or behind positions for the image.

With overlap 1, for objectives that predict the next token, a row is `prefix_tokens` tokens with the
id `prefix_id`, which the model replaces by the image, and the framed text behind them. They have no
loss weight. A text that does not fit continues in the next row, behind the same image, without its
earlier tokens as context. With overlap 0 a text has one row and loses what does not fit, but not
its end token.
"""

import functools
from typing import NamedTuple

import numpy as np

from data.packing import DocumentSlice, frame_ids
from data.random_streams import RandomStream, permutation
from data.store import TokenStore
from errors import ConfigError, DataError


class ImagePrefix(NamedTuple):
    """The tokens of a row in whose place the model puts an image."""

    length: int = 0
    token_id: int = -1


class ImageRows:
    """Rows of one image and a text each.

    With a seed they are permuted anew in every epoch; without, they are one pass in order.
    """

    def __init__(
        self,
        store: TokenStore,
        row_length: int,
        overlap: int,
        prefix: ImagePrefix,
        seed: int | None = None,
    ):
        """Sets up the rows.

        Raises:
            DataError: if the store has no images.
            ConfigError: if an image leaves no room for text in a row.
        """
        if store.image_shape is None:
            raise DataError(
                f"{store.folder} holds texts without images; set data.source to digits or images"
            )
        self.store, self.seed, self.is_endless = store, seed, seed is not None
        self.image_shape: tuple[int, ...] | None = store.image_shape
        self.row_length, self.overlap, self._prefix = row_length, overlap, prefix
        self._frame = frame_ids(store, overlap)
        self._room = row_length - prefix.length
        if self._room < 2:
            raise ConfigError(
                f"train.seq_len {row_length} leaves no room for text behind the {prefix.length} "
                f"patches of an image; use {prefix.length + 2} or more"
            )
        n_positions = store.lengths + self._frame.size - overlap
        counts = -(-n_positions // self._room) if overlap else np.ones_like(n_positions)
        self._documents = np.repeat(np.arange(len(counts)), counts)
        numbers = np.arange(len(self._documents)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._starts = numbers * self._room
        self.epoch_length = len(self._documents) * row_length  # Positions of one epoch.
        self.unique_length = self.epoch_length  # Positions of different text.
        self._row_order = functools.lru_cache(maxsize=2)(self._permute_rows)

    def row(self, index: int) -> list[DocumentSlice]:
        """Returns the text of a row with its image; none after the end of a single pass."""
        epoch, rank = divmod(index, len(self._documents))
        if self.seed is None and epoch:
            return []
        row = rank if self.seed is None else int(self._row_order(epoch)[rank])
        document, start = int(self._documents[row]), int(self._starts[row])
        tokens = self._framed(document)
        if not self.overlap and len(tokens) > self._room:
            ends = tokens[-1:] if self._frame.after >= 0 else tokens[:0]
            tokens = np.concatenate([tokens[: self._room - len(ends)], ends])
        tokens = tokens[start : start + self._room + self.overlap]
        prefix = np.full(self._prefix.length, self._prefix.token_id, np.int32)
        weights = None
        if self.overlap:
            weights = np.ones(len(prefix) + len(tokens) - self.overlap, np.float32)
            weights[: len(prefix)] = 0
        tokens = np.concatenate([prefix, tokens])
        image = self.store.image(document)
        return [DocumentSlice(tokens, document, start, weights, image=image)]

    def _framed(self, document: int) -> np.ndarray:
        before, after = ([i] * (i >= 0) for i in self._frame)
        ids = self.store.document(document)
        return np.concatenate([before, ids, after]).astype(np.int32)

    def _permute_rows(self, epoch: int) -> np.ndarray:
        return permutation(self.seed or 0, epoch, RandomStream.DOCUMENTS, len(self._documents))
