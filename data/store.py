"""The token store: one split of a corpus as ids on disk, read through a memory map.

A folder with
    tokens.bin    the ids of all documents after one another, uint16 or uint32, little endian
    offsets.bin   int64, little endian: where each document begins, and the end of the last
    index.json    counts, vocabulary, tokenizer, and size and sha256 of the files
    weights.bin   float32, if tokens count unequally: the weight of each in the loss
    records.bin   int64, if documents belong together: the first one of each record, and the end
Only text is stored; framing with bos and eos is left to packing. No document is empty.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data.tokenizers import Tokenizer
from errors import DataError

FORMAT = 1
TOKENS, OFFSETS, INDEX = "tokens.bin", "offsets.bin", "index.json"
RECORDS, WEIGHTS = "records.bin", "weights.bin"
DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
REMEDY = "have the store built again"
IDENTITY = ("format", "dtype", "vocab", "tokenizer", "documents", "tokens", "text_bytes", "files")


class Store:
    """An open token store. `index` is what index.json holds; damage is a DataError."""

    def __init__(self, folder: Path, *, verify: bool = True):
        self.folder = folder
        self.index = read_index(folder)
        self.documents: int = self.index["documents"]
        self.tokens: int = self.index["tokens"]
        self.text_bytes: int = self.index["text_bytes"]  # of the documents in the store, as UTF-8
        self.vocab: int = self.index["vocab"]
        self.bos: int = self.index["bos"]
        self.eos: int = self.index["eos"]
        self.fingerprint = fingerprint(self.index)
        self._check_files(verify)
        dtype = DTYPES[self.index["dtype"]]
        self._ids = np.asarray(np.memmap(folder / TOKENS, dtype, "r"))
        self._offsets = np.asarray(np.memmap(folder / OFFSETS, "<i8", "r"))
        self._check_offsets()
        self.scored: int = self.index.get("scored", self.tokens + self.documents)
        self._weights: np.ndarray | None = None
        if WEIGHTS in self.index["files"]:
            self._weights = np.asarray(np.memmap(folder / WEIGHTS, "<f4", "r"))
        self.records: np.ndarray | None = None  # documents from records[i] to records[i + 1]
        if RECORDS in self.index["files"]:
            self.records = np.asarray(np.memmap(folder / RECORDS, "<i8", "r"))
            self._check_records(self.records)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64."""
        return np.diff(self._offsets)

    def slice(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of a document, int32; an id out of range is a DataError."""
        begin = int(self._offsets[document])
        ids = self._ids[begin + start : begin + stop]
        if ids.size and ids.max() >= self.vocab:
            at = begin + start + int((ids >= self.vocab).argmax())
            raise DataError(_out_of_range(self.folder, at, document, self._ids[at], self.vocab))
        return ids.astype(np.int32)

    def weights(self, document: int, start: int, stop: int) -> np.ndarray | None:
        """The weights of tokens `start` to `stop` of a document; None: all are 1."""
        if self._weights is None:
            return None
        begin = int(self._offsets[document])
        return self._weights[begin + start : begin + stop]

    def document(self, document: int) -> np.ndarray:
        """All tokens of a document, int32."""
        length = int(self._offsets[document + 1] - self._offsets[document])
        return self.slice(document, 0, length)

    def _check_files(self, verify: bool) -> None:
        for name in sorted({TOKENS, OFFSETS, RECORDS, WEIGHTS} & set(self.index["files"])):
            path, expected = self.folder / name, self.index["files"][name]
            if not path.is_file():
                raise DataError(f"{path} is missing; {REMEDY}")
            status = path.stat()
            size = status.st_size
            if size != expected["bytes"]:
                said = expected["bytes"]
                raise DataError(f"{path} has {size} bytes, {INDEX} says {said}; {REMEDY}")
            if verify and _sha256(path, size, status.st_mtime_ns) != expected["sha256"]:
                raise DataError(f"{path} is damaged: sha256 is not that of {INDEX}; {REMEDY}")

    def _check_offsets(self) -> None:
        first, last = int(self._offsets[0]), int(self._offsets[-1])
        if (first, last) != (0, self.tokens) or (self.lengths <= 0).any():
            raise DataError(
                f"{self.folder / OFFSETS} does not divide tokens 0 to {self.tokens} into documents "
                f"(it goes from {first} to {last}, shortest {self.lengths.min()}); {REMEDY}"
            )

    def _check_records(self, starts: np.ndarray) -> None:
        if starts[0] != 0 or starts[-1] != self.documents or (np.diff(starts) <= 0).any():
            raise DataError(
                f"{self.folder / RECORDS} does not divide documents 0 to {self.documents} into "
                f"records; {REMEDY}"
            )


class Writer:
    """Writes one store, document by document, in bounded memory; `finish` writes the index last.

    With `records`, documents come as the texts of records, and an empty one takes its record along;
    if it `weighs`, with a weight for each token.
    """

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, *, records: bool = False, weighs: bool = False
    ):
        folder.mkdir(parents=True)
        self.folder, self.records, self.weighs = folder, records, weighs
        self.documents = self.tokens = self.text_bytes = self.dropped = 0
        self._tokenizer = tokenizer
        self._vocab = tokenizer.vocab
        self._dtype = "uint16" if self._vocab <= 1 << 16 else "uint32"
        self._files = {name: _Hashed(folder / name) for name in (TOKENS, OFFSETS)}
        self._files[OFFSETS].write(np.zeros(1, "<i8"))
        self.scored = 0  # targets that count, ends of documents included
        if weighs:
            self._files[WEIGHTS] = _Hashed(folder / WEIGHTS)
        if records:
            self._files[RECORDS] = _Hashed(folder / RECORDS)
            self._files[RECORDS].write(np.zeros(1, "<i8"))

    def add_records(self, records: Sequence[tuple[list[np.ndarray], int]]) -> None:
        """Append records: the ids of their texts, and the bytes of all of these."""
        kept = [(texts, size) for texts, size in records if all(len(ids) for ids in texts)]
        self.dropped += len(records) - len(kept)
        ends = self.documents + np.cumsum([len(texts) for texts, _ in kept], dtype=np.int64)
        self._files[RECORDS].write(ends.astype("<i8"))
        sizes = [size if i == 0 else 0 for texts, size in kept for i in range(len(texts))]
        self.add([ids for texts, _ in kept for ids in texts], sizes)

    def add_weighed(
        self,
        documents: Sequence[np.ndarray],
        text_bytes: Sequence[int],
        weights: Sequence[np.ndarray],
    ) -> None:
        """`add`, with the weight of each token; an end of document has that of the last one."""
        for ids, own in zip(documents, weights, strict=True):
            if len(ids):
                self._files[WEIGHTS].write(own.astype("<f4"))
                self.scored += int(np.count_nonzero(own)) + int(own[-1] != 0)
        self.add(documents, text_bytes)

    def add(self, documents: Sequence[np.ndarray], text_bytes: Sequence[int]) -> None:
        """Append documents of integer ids, with the size of their text; empty ones are dropped."""
        kept = [(ids, size) for ids, size in zip(documents, text_bytes, strict=True) if len(ids)]
        self.dropped += len(documents) - len(kept)
        if not kept:
            return
        ids = np.concatenate([ids for ids, _ in kept])
        ends = self.tokens + np.cumsum([len(ids) for ids, _ in kept], dtype=np.int64)
        if ids.min() < 0 or ids.max() >= self._vocab:  # narrowing would wrap them around
            at = int(((ids < 0) | (ids >= self._vocab)).argmax())
            document = self.documents + int(np.searchsorted(ends, self.tokens + at, side="right"))
            where = self.tokens + at
            raise DataError(_out_of_range(self.folder, where, document, ids[at], self._vocab))
        self._files[TOKENS].write(ids.astype(DTYPES[self._dtype]))
        self._files[OFFSETS].write(ends.astype("<i8"))
        self.documents += len(kept)
        self.tokens += len(ids)
        self.text_bytes += sum(size for _, size in kept)

    def finish(self, facts: dict[str, Any]) -> None:
        """Close the files and write index.json, with further `facts` for the reader."""
        specials = asdict(self._tokenizer.specials)
        index = {
            "format": FORMAT,
            "dtype": self._dtype,
            "vocab": self._vocab,
            "bos": specials["bos"],
            "eos": specials["eos"],
            "tokenizer": self._tokenizer.fingerprint,
            "documents": self.documents,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "dropped": self.dropped,
            **({"scored": self.scored} if WEIGHTS in self._files else {}),
            **facts,
            "files": {name: file.close() for name, file in self._files.items()},
        }
        index["sha256"] = _digest(index)
        (self.folder / INDEX).write_text(json.dumps(index, indent=1))


def read_index(folder: Path) -> dict[str, Any]:
    """The content of index.json, with the types that a reader relies on."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
        if index["format"] > FORMAT:
            raise DataError(
                f"{folder} has format {index['format']}, this version reads up to {FORMAT}; "
                "update isoflop"
            )
        counts = ("documents", "tokens", "text_bytes", "vocab", "bos", "eos", "dropped")
        sizes = [index[name] for name in counts]
        sizes += [index["files"][name]["bytes"] for name in (TOKENS, OFFSETS)]
        width = DTYPES[index["dtype"]].itemsize
        sound = all(type(size) is int for size in sizes) and type(index["tokenizer"]) is str
        sound = sound and index["files"][TOKENS]["bytes"] == index["tokens"] * width
        sound = sound and index["files"][OFFSETS]["bytes"] == 8 * (index["documents"] + 1)
        sound = sound and index["files"].get(RECORDS, {"bytes": 16})["bytes"] >= 16
        weights = index["files"].get(WEIGHTS, {"bytes": 4 * index["tokens"]})["bytes"]
        sound = sound and weights == 4 * index["tokens"]
        sound = sound and 0 < index["vocab"] <= 1 << 8 * width and index["tokens"] > 0
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {REMEDY}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); {REMEDY}") from error
    if not sound:
        raise DataError(f"{path} contradicts itself; {REMEDY}")
    if index.pop("sha256", None) not in (_digest(index), None):  # stores had none at first
        raise DataError(f"{path} is not what was written: its sha256 differs; {REMEDY}")
    return index


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def fingerprint(index: dict[str, Any]) -> str:
    """sha256 of what the data are, whatever their source files were called."""
    return _digest({name: index[name] for name in IDENTITY})


class _Hashed:
    """A file that is hashed while it is written."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def write(self, array: np.ndarray) -> None:
        block = array.tobytes()
        self._file.write(block)
        self._sha256.update(block)
        self._bytes += len(block)

    def close(self) -> dict[str, Any]:
        self._file.close()
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed: int) -> str:
    """The digest of a file, computed once per process as long as the file stays the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _out_of_range(folder: Path, at: int, document: int, token: int, vocab: int) -> str:
    return (
        f"{folder / TOKENS}: token {at} (document {document}) has id {token}, outside the "
        f"vocabulary of {vocab} ids; the tokenizer and the store do not belong together"
    )
