"""The writer of a token store (`data/store.py`): document by document, in bounded memory."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.groups.counts import GROUPS_FILE, GroupCounts
from data.store_index import (
    DTYPES,
    FORMAT,
    IMAGES_FILE,
    INDEX_FILE,
    OFFSETS_FILE,
    RECORDS_FILE,
    TOKENS_FILE,
    WEIGHTS_FILE,
    hash_json,
    out_of_range_message,
)
from data.tokenizers import Tokenizer
from errors import DataError
from settings.json_types import JsonObject
from storage.hashing_file import HashingFile


class TokenStoreWriter:
    """Writes one store, document by document, in bounded memory; `finish` writes the index.

    With `has_records` the documents are the texts of text pairs, and a pair with an empty text is
    dropped. With `has_weights` each token has a loss weight, with `has_groups` each document a
    group, with `image_shape` an image.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        has_records: bool = False,
        has_weights: bool = False,
        has_groups: bool = False,
        image_shape: tuple[int, ...] = (),
    ):
        folder.mkdir(parents=True)
        self.folder, self.has_records, self.has_weights = folder, has_records, has_weights
        self.image_shape = image_shape
        self.n_documents = self.n_tokens = self.text_bytes = self.n_dropped = 0
        self._last_end = self._open_bytes = 0  # Of a document that is written in parts.
        self._tokenizer = tokenizer
        self._vocab_size = tokenizer.vocab_size
        self._dtype = "uint16" if self._vocab_size <= 1 << 16 else "uint32"
        self._files = {name: HashingFile(folder / name) for name in (TOKENS_FILE, OFFSETS_FILE)}
        self._files[OFFSETS_FILE].write(np.zeros(1, "<i8"))
        self.n_targets = 0  # Targets with a weight, ends of documents included.
        if has_weights:
            self._files[WEIGHTS_FILE] = HashingFile(folder / WEIGHTS_FILE)
        self._groups = GroupCounts()
        if has_groups:
            self._files[GROUPS_FILE] = HashingFile(folder / GROUPS_FILE)
        if image_shape:
            self._files[IMAGES_FILE] = HashingFile(folder / IMAGES_FILE)
        if has_records:
            self._files[RECORDS_FILE] = HashingFile(folder / RECORDS_FILE)
            self._files[RECORDS_FILE].write(np.zeros(1, "<i8"))

    def add_records(self, records: Sequence[tuple[list[np.ndarray], int]]) -> None:
        """Appends text pairs: the ids of each text, and the size in bytes of all texts together."""
        pairs = [(texts, size) for texts, size in records if all(len(ids) for ids in texts)]
        self.n_dropped += len(records) - len(pairs)
        ends = self.n_documents + np.cumsum([len(texts) for texts, _ in pairs], dtype=np.int64)
        self._files[RECORDS_FILE].write(ends.astype("<i8"))
        sizes = [size if i == 0 else 0 for texts, size in pairs for i in range(len(texts))]
        self.add([ids for texts, _ in pairs for ids in texts], sizes)

    def add_weighted(
        self,
        documents: Sequence[np.ndarray],
        text_bytes: Sequence[int],
        weights: Sequence[np.ndarray],
    ) -> None:
        """Appends documents with a weight per token; the end of a document has its last weight."""
        for ids, token_weights in zip(documents, weights, strict=True):
            if len(ids):
                self._files[WEIGHTS_FILE].write(token_weights.astype("<f4"))
                ends = bool(self._tokenizer.framing.document_suffix) and token_weights[-1] != 0
                self.n_targets += int(np.count_nonzero(token_weights)) + int(ends)
        self.add(documents, text_bytes)

    def add_images(
        self,
        documents: Sequence[np.ndarray],
        text_bytes: Sequence[int],
        images: Sequence[np.ndarray],
    ) -> None:
        """Appends documents with their images; an empty one is dropped with its image."""
        for ids, image in zip(documents, images, strict=True):
            if len(ids):
                self._files[IMAGES_FILE].write(image.reshape(self.image_shape))
        self.add(documents, text_bytes)

    def add(
        self,
        documents: Sequence[np.ndarray],
        text_bytes: Sequence[int],
        groups: Sequence[str] = (),
    ) -> None:
        """Appends documents of integer ids with the size of their text; drops empty documents.

        With groups, each document has one.

        Raises:
            DataError: if an id is outside the vocabulary.
        """
        pairs = zip(documents, text_bytes, strict=True)
        non_empty = [(ids, size) for ids, size in pairs if len(ids)]
        self.n_dropped += len(documents) - len(non_empty)
        if not non_empty:
            return
        ends = self.n_tokens + np.cumsum([len(ids) for ids, _ in non_empty], dtype=np.int64)
        self._write_ids(np.concatenate([ids for ids, _ in non_empty]), ends)
        if GROUPS_FILE in self._files:
            self._files[GROUPS_FILE].write(self._groups.add(documents, text_bytes, groups))
        self._files[OFFSETS_FILE].write(ends.astype("<i8"))
        self._last_end = self.n_tokens
        self.n_documents += len(non_empty)
        self.text_bytes += sum(size for _, size in non_empty)

    def extend(self, ids: np.ndarray, text_bytes: int) -> None:
        """Appends a part of a long document, which `end_document` ends.

        Raises:
            DataError: if an id is outside the vocabulary.
        """
        if len(ids):
            self._write_ids(ids, np.zeros(0, np.int64))
        self._open_bytes += text_bytes

    def end_document(self) -> None:
        """Ends the document that `extend` wrote; drops it if it is empty."""
        if self.n_tokens > self._last_end:
            self._files[OFFSETS_FILE].write(np.array([self.n_tokens], "<i8"))
            self.n_documents += 1
            self.text_bytes += self._open_bytes
            self._last_end = self.n_tokens
        else:
            self.n_dropped += 1
        self._open_bytes = 0

    def _write_ids(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Writes ids of the documents that end at `ends`.

        Raises:
            DataError: if an id is outside the vocabulary.
        """
        # Without this check the cast to uint16 or uint32 would wrap such ids around.
        if ids.min() < 0 or ids.max() >= self._vocab_size:
            index = int(((ids < 0) | (ids >= self._vocab_size)).argmax())
            position = self.n_tokens + index
            document = self.n_documents + int(np.searchsorted(ends, position, side="right"))
            raise DataError(
                out_of_range_message(self.folder, position, document, ids[index], self._vocab_size)
            )
        self._files[TOKENS_FILE].write(ids.astype(DTYPES[self._dtype]))
        self.n_tokens += len(ids)

    def finish(self, metadata: JsonObject) -> None:
        """Closes the files and writes index.json, with the entries of `metadata` in it."""
        framing = self._tokenizer.framing
        index = {
            "format": FORMAT,
            "dtype": self._dtype,
            "vocab": self._vocab_size,
            "bos": next(iter(framing.document_prefix), -1),
            "eos": next(iter(framing.document_suffix), -1),
            "tokenizer": self._tokenizer.fingerprint,
            "documents": self.n_documents,
            "tokens": self.n_tokens,
            "text_bytes": self.text_bytes,
            "dropped": self.n_dropped,
            **({"scored": self.n_targets} if WEIGHTS_FILE in self._files else {}),
            **({"groups": self._groups.by_name} if GROUPS_FILE in self._files else {}),
            **({"image_shape": list(self.image_shape)} if self.image_shape else {}),
            **metadata,
            "files": {name: file.close() for name, file in self._files.items()},
        }
        index["sha256"] = hash_json(index)
        (self.folder / INDEX_FILE).write_text(json.dumps(index, indent=1))
