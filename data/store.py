"""The token store: one split of a corpus as ids on disk, read through a memory map.

The files of a store:
    tokens.bin    uint16 or uint32, little endian: the ids of all documents, one after another
    offsets.bin   int64, little endian: the start of each document, and the end of the last one
    index.json    counts, vocabulary, tokenizer, and size and sha256 of the files
    weights.bin   float32, only with loss weights: the weight of each token
    groups.bin    int32, only with groups: the group of each document (data/groups/counts.py)
    records.bin   int64, only with text pairs: the first document of each pair, and the end
Only text is stored; packing adds bos and eos. No document is empty.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.groups.counts import GROUPS_FILE, GroupCounts, open_groups
from data.tokenizers import Tokenizer
from errors import DataError
from settings.json_types import JsonObject

FORMAT = 1
TOKENS_FILE, OFFSETS_FILE, INDEX_FILE = "tokens.bin", "offsets.bin", "index.json"
RECORDS_FILE, WEIGHTS_FILE = "records.bin", "weights.bin"
DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
REBUILD_HINT = "rebuild the store"
COUNTED_TOKENS = 1 << 22  # Tokens that are counted at a time, which bounds the memory.
FINGERPRINT_KEYS = (
    "format",
    "dtype",
    "vocab",
    "tokenizer",
    "documents",
    "tokens",
    "text_bytes",
    "files",
)


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
                _out_of_range_message(
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
            {TOKENS_FILE, OFFSETS_FILE, RECORDS_FILE, WEIGHTS_FILE, GROUPS_FILE}
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
            if verify and _file_sha256(path, size, status.st_mtime_ns) != expected["sha256"]:
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


class TokenStoreWriter:
    """Writes one store, document by document, in bounded memory; `finish` writes the index.

    With `has_records` the documents are the texts of text pairs, and a pair with an empty text is
    dropped. With `has_weights` each token has a loss weight, with `has_groups` each document a
    group.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        has_records: bool = False,
        has_weights: bool = False,
        has_groups: bool = False,
    ):
        folder.mkdir(parents=True)
        self.folder, self.has_records, self.has_weights = folder, has_records, has_weights
        self.n_documents = self.n_tokens = self.text_bytes = self.n_dropped = 0
        self._last_end = self._open_bytes = 0  # Of a document that is written in parts.
        self._tokenizer = tokenizer
        self._vocab_size = tokenizer.vocab_size
        self._dtype = "uint16" if self._vocab_size <= 1 << 16 else "uint32"
        self._files = {name: _HashingFile(folder / name) for name in (TOKENS_FILE, OFFSETS_FILE)}
        self._files[OFFSETS_FILE].write(np.zeros(1, "<i8"))
        self.n_targets = 0  # Targets with a weight, ends of documents included.
        if has_weights:
            self._files[WEIGHTS_FILE] = _HashingFile(folder / WEIGHTS_FILE)
        self._groups = GroupCounts()
        if has_groups:
            self._files[GROUPS_FILE] = _HashingFile(folder / GROUPS_FILE)
        if has_records:
            self._files[RECORDS_FILE] = _HashingFile(folder / RECORDS_FILE)
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
                _out_of_range_message(self.folder, position, document, ids[index], self._vocab_size)
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
            **metadata,
            "files": {name: file.close() for name, file in self._files.items()},
        }
        index["sha256"] = hash_json(index)
        (self.folder / INDEX_FILE).write_text(json.dumps(index, indent=1))


def read_index(folder: Path) -> JsonObject:
    """Returns the content of index.json after checks of types and sizes.

    Raises:
        DataError: if the file is missing, damaged or of a newer format.
    """
    path = folder / INDEX_FILE
    try:
        index = json.loads(path.read_text())
        if index["format"] > FORMAT:
            raise DataError(
                f"{folder} has format {index['format']}, this version reads up to {FORMAT}; "
                "update isoflop"
            )
        counts = ("documents", "tokens", "text_bytes", "vocab", "bos", "eos", "dropped")
        sizes = [index[name] for name in counts]
        sizes += [index["files"][name]["bytes"] for name in (TOKENS_FILE, OFFSETS_FILE)]
        width = DTYPES[index["dtype"]].itemsize
        is_valid = all(type(size) is int for size in sizes) and type(index["tokenizer"]) is str
        is_valid = is_valid and index["files"][TOKENS_FILE]["bytes"] == index["tokens"] * width
        is_valid = is_valid and index["files"][OFFSETS_FILE]["bytes"] == 8 * (
            index["documents"] + 1
        )
        is_valid = is_valid and index["files"].get(RECORDS_FILE, {"bytes": 16})["bytes"] >= 16
        weights = index["files"].get(WEIGHTS_FILE, {"bytes": 4 * index["tokens"]})["bytes"]
        is_valid = is_valid and weights == 4 * index["tokens"]
        is_valid = is_valid and 0 < index["vocab"] <= 1 << 8 * width and index["tokens"] > 0
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {REBUILD_HINT}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); {REBUILD_HINT}") from error
    if not is_valid:
        raise DataError(f"{path} has entries that contradict each other; {REBUILD_HINT}")
    if index.pop("sha256", "") != hash_json(index):
        raise DataError(f"{path} is damaged: its sha256 differs; {REBUILD_HINT}")
    return index


def hash_json(content: object) -> str:
    """Returns the sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fingerprint(index: JsonObject) -> str:
    """Returns the sha256 of the data, which does not depend on names of source files."""
    return hash_json({name: index[name] for name in FINGERPRINT_KEYS})


class _HashingFile:
    """A file whose hash is computed while it is written."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def write(self, array: np.ndarray) -> None:
        block = array.tobytes()
        self._file.write(block)
        self._sha256.update(block)
        self._bytes += len(block)

    def close(self) -> JsonObject:
        self._file.close()
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}


@functools.lru_cache(maxsize=64)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Returns the sha256 of a file, computed once per process while the file is unchanged."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _out_of_range_message(folder: Path, index: int, document: int, token: int, vocab: int) -> str:
    return (
        f"{folder / TOKENS_FILE}: token {index} (document {document}) has id {token}, outside the "
        f"vocabulary of {vocab} ids; use the store with the tokenizer that made it"
    )
