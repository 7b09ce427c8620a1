"""The token store: one split of a corpus as ids on disk, read through a memory map.

The files of a store:
    tokens.bin    uint16 or uint32, little endian: the ids of all documents, one after another
    offsets.bin   int64, little endian: the start of each document, and the end of the last one
    index.json    counts, vocabulary, tokenizer, and size and sha256 of the files
    weights.bin   float32, only with loss weights: the weight of each token
    groups.bin    int32, only with groups: the group of each document (data/groups/counts.py)
    records.bin   int64, only with text pairs: the first document of each pair, and the end
    images.bin    uint8, only with images: one of each document [height width channels]
Only text is stored; packing adds bos and eos. No document is empty.
"""

from pathlib import Path

import numpy as np

from data.groups.counts import GROUPS_FILE, open_groups
from data.store_index import (
    DTYPES,
    IMAGES_FILE,
    INDEX_FILE,
    OFFSETS_FILE,
    REBUILD_HINT,
    RECORDS_FILE,
    TOKENS_FILE,
    WEIGHTS_FILE,
    fingerprint,
    out_of_range_message,
    read_index,
)
from errors import DataError
from storage.hashing_file import file_sha256

COUNTED_TOKENS = 1 << 22  # Tokens that are counted at a time, which bounds the memory.


class TokenStore:
    """An open token store, with the content of index.json as `index`.

    Opening a damaged store raises a DataError. `group_temperature` is that of training rows.
    """

    def __init__(self, folder: Path, *, verify: bool = True, group_temperature: float = 1.0):
        self.folder, self.group_temperature = folder, group_temperature
        self.index = read_index(folder)
        self.n_documents: int = self.index["documents"]
        self.n_tokens: int = self.index["tokens"]
        self.text_bytes: int = self.index["text_bytes"]  # Size of the documents as UTF-8.
        self.vocab_size: int = self.index["vocab"]
        self.bos: int = self.index["bos"]
        self.eos: int = self.index["eos"]
        self.fingerprint = fingerprint(self.index)
        self._check_files(verify)
        dtype = DTYPES[self.index["dtype"]]
        self._ids = np.asarray(np.memmap(folder / TOKENS_FILE, dtype, "r"))
        self._offsets = np.asarray(np.memmap(folder / OFFSETS_FILE, "<i8", "r"))
        self._check_offsets()
        n_ends = self.n_documents if self.eos >= 0 else 0
        self.n_targets: int = self.index.get("scored", self.n_tokens + n_ends)
        self._weights: np.ndarray | None = None
        if WEIGHTS_FILE in self.index["files"]:
            self._weights = np.asarray(np.memmap(folder / WEIGHTS_FILE, "<f4", "r"))
        # Text pair i is the documents from record_offsets[i] to record_offsets[i + 1].
        self.record_offsets: np.ndarray | None = None
        if RECORDS_FILE in self.index["files"]:
            self.record_offsets = np.asarray(np.memmap(folder / RECORDS_FILE, "<i8", "r"))
            self._check_records(self.record_offsets)
        # The group of each document, as its number in group_names; None: there are no groups.
        self.groups: np.ndarray | None = open_groups(folder, self.index)
        self.group_names: tuple[str, ...] = tuple(self.index.get("groups", {}))
        self._images: np.ndarray | None = None
        self.image_shape: tuple[int, ...] | None = None  # [height width channels]
        if shape := self.index.get("image_shape"):
            images = np.memmap(folder / IMAGES_FILE, "u1", "r", shape=(self.n_documents, *shape))
            self._images, self.image_shape = np.asarray(images), tuple(shape)

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each document, int64."""
        return np.diff(self._offsets)

    @property
    def n_records(self) -> int:
        """The number of records; 0: the documents are no texts of records."""
        return 0 if self.record_offsets is None else len(self.record_offsets) - 1

    def slice(self, document: int, start: int, stop: int) -> np.ndarray:
        """Returns the tokens `start` to `stop` of a document, int32.

        Raises:
            DataError: if an id is outside the vocabulary.
        """
        begin = int(self._offsets[document])
        ids = self._ids[begin + start : begin + stop]
        if ids.size and ids.max() >= self.vocab_size:
            index = begin + start + int((ids >= self.vocab_size).argmax())
            raise DataError(
                out_of_range_message(
                    self.folder, index, document, self._ids[index], self.vocab_size
                )
            )
        return ids.astype(np.int32)

    def weights(self, document: int, start: int, stop: int) -> np.ndarray | None:
        """Returns the loss weights of tokens `start` to `stop` of a document; None: all are 1."""
        if self._weights is None:
            return None
        begin = int(self._offsets[document])
        return self._weights[begin + start : begin + stop]

    def image(self, document: int) -> np.ndarray | None:
        """Returns the image of a document, uint8; None if there are none."""
        return None if self._images is None else self._images[document]

    def document(self, document: int) -> np.ndarray:
        """Returns all tokens of a document, int32."""
        return self.slice(document, 0, self.length(document))

    def length(self, document: int) -> int:
        """Returns the number of tokens of a document."""
        return int(self._offsets[document + 1] - self._offsets[document])

    def sum_over_tokens(self, values: np.ndarray) -> int:
        """Returns the sum of `values[id]` over all tokens of the store, for integer values."""
        chunks = range(0, self.n_tokens, COUNTED_TOKENS)
        return sum(int(values[self._ids[i : i + COUNTED_TOKENS]].sum()) for i in chunks)

    def _check_files(self, verify: bool) -> None:
        for name in sorted(
            {TOKENS_FILE, OFFSETS_FILE, RECORDS_FILE, WEIGHTS_FILE, GROUPS_FILE, IMAGES_FILE}
            & set(self.index["files"])
        ):
            path, expected = self.folder / name, self.index["files"][name]
            if not path.is_file():
                raise DataError(f"{path} is missing; {REBUILD_HINT}")
            status = path.stat()
            size = status.st_size
            if size != expected["bytes"]:
                raise DataError(
                    f"{path} has {size} bytes, {INDEX_FILE} has {expected['bytes']}; {REBUILD_HINT}"
                )
            if verify and file_sha256(path, size, status.st_mtime_ns) != expected["sha256"]:
                raise DataError(
                    f"{path} is damaged: sha256 differs from that in {INDEX_FILE}; {REBUILD_HINT}"
                )

    def _check_offsets(self) -> None:
        first, last = int(self._offsets[0]), int(self._offsets[-1])
        if (first, last) != (0, self.n_tokens) or (self.lengths <= 0).any():
            raise DataError(
                f"{self.folder / OFFSETS_FILE} does not divide tokens 0 to {self.n_tokens} into "
                f"documents (offsets are {first} to {last}, shortest document "
                f"{self.lengths.min()}); {REBUILD_HINT}"
            )

    def _check_records(self, starts: np.ndarray) -> None:
        if starts[0] != 0 or starts[-1] != self.n_documents or (np.diff(starts) <= 0).any():
            raise DataError(
                f"{self.folder / RECORDS_FILE} does not divide documents 0 to {self.n_documents} "
                f"into text pairs; {REBUILD_HINT}"
            )
