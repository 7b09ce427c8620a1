"""Text that splits share: equal documents, and 13 consecutive words that occur in two splits.

A model that has read the text on which it is evaluated is not evaluated. The length is that of
GPT-3's contamination analysis (Brown et al., arXiv:2005.14165, appendix C). Memory is bounded: of
more than `MAX_HASHES` n-grams, those with the smallest hashes are compared, which are a uniform
sample (Broder 1997). Words are cut by arithmetic on bytes, without the Unicode normalization of
`data/prepare/words.py`, since every store that is built pays for them.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt64

from data.store import hash_json, read_index
from data.text_files import LONG_TEXT_BYTES
from errors import DataError
from formatting import format_percent

LOG = logging.getLogger(__name__)
SHARED_FILE = "shared.json"  # Beside the three stores.
NGRAM_WORDS = 13
MERGE_HASHES = 4 << 20  # Hashes that wait to be sorted.
MAX_HASHES = 16 << 20  # Hashes in memory, 128 MiB.
# Bytes of UTF-8 that belong to words: letters, digits and all characters outside of ASCII.
IS_WORD = np.array([chr(byte).isalnum() or byte >= 128 for byte in range(256)])
# First bytes of characters of scripts that are written without spaces, each of which is a word.
IS_IDEOGRAPH = np.array([0xE3 <= byte <= 0xED for byte in range(256)])
MAX_WORD_BYTES = 64  # Bytes of a word that its hash depends on.
Hashes = UInt64[np.ndarray, " N"]
POWERS = np.uint64(0x9E3779B97F4A7C15) ** np.arange(MAX_WORD_BYTES, dtype=np.uint64)
# The split whose text must be new, and the split that it is compared with.
PAIRS = (("valid", "train"), ("test", "train"), ("test", "valid"))


class SharedText(NamedTuple):
    """The text of a split that occurs in another split, as shares from 0 to 1."""

    split: str
    other: str
    documents: float
    ngrams: float

    @property
    def share(self) -> float:
        """The larger of both shares."""
        return max(self.documents, self.ngrams)


class SplitOverlap:
    """Collects the hashes of documents and n-grams of each split, in one pass over the text."""

    def __init__(self, max_hashes: int = MAX_HASHES) -> None:
        self._ngrams: dict[str, _HashSet] = {}
        self._documents: dict[str, _HashSet] = {}
        self._max_hashes = max_hashes

    def add(self, split: str, texts: Iterable[str], *, with_ngrams: bool = True) -> None:
        """Adds the text of documents; those of less than 13 words are too short to compare."""
        pieces = (
            text[i : i + LONG_TEXT_BYTES]  # An array has a number for each byte.
            for text in texts
            for i in range(0, len(text), LONG_TEXT_BYTES)
        )
        for text in pieces:
            raw = text.lower().encode(errors="surrogatepass")
            words = hash_byte_words(np.frombuffer(raw, np.uint8))
            if len(words) < NGRAM_WORDS:
                continue
            digest = hashlib.blake2b(raw, digest_size=8).digest()
            _hash_set(self._documents, split).add(np.frombuffer(digest, "<u8"))
            if with_ngrams:
                count = len(words) - NGRAM_WORDS + 1
                shifted = (words[i : i + count] * POWERS[i] for i in range(NGRAM_WORDS))
                ngrams = sum(shifted, np.zeros(count, np.uint64))
                _hash_set(self._ngrams, split).add(ngrams)
        for sets in (self._documents, self._ngrams):
            while sum(s.size for s in sets.values()) > self._max_hashes:
                bound = min(s.bound for s in sets.values()) // 2
                for hashes in sets.values():
                    hashes.keep_below(bound)

    def shared_texts(self) -> list[SharedText]:
        """Returns what the held-out splits share with each other and with the training split."""
        return [
            SharedText(
                split,
                other,
                _shared(self._documents, split, other),
                _shared(self._ngrams, split, other),
            )
            for split, other in PAIRS
        ]

    def write(self, folder: Path) -> None:
        """Writes what the splits share to a folder of token stores, for `check_overlap`."""
        shared = [shared._asdict() for shared in self.shared_texts()]
        text = json.dumps({"shared": shared, "sha256": hash_json(shared)})
        (folder / SHARED_FILE).write_text(text)


class _HashSet:
    """A set of hashes below a bound, as an array that is sorted when it is read."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._parts: list[Hashes] = []
        self._pending = 0
        self._sorted = 0

    @property
    def size(self) -> int:
        return self._pending + self._sorted

    def add(self, hashes: Hashes) -> None:
        if self.bound < 1 << 64:
            hashes = hashes[hashes < np.uint64(self.bound)]
        self._parts.append(hashes)
        self._pending += len(hashes)
        if self._pending > max(MERGE_HASHES, self._sorted):
            self.read()

    def read(self) -> Hashes:
        if self._parts:
            hashes = np.concatenate(self._parts)
            self._parts = []  # They must not be in memory twice.
            hashes.sort()  # Far faster than np.unique.
            is_first = np.ones(len(hashes), bool)
            np.not_equal(hashes[1:], hashes[:-1], out=is_first[1:])
            self._parts = [hashes[is_first]]
            self._pending, self._sorted = 0, len(self._parts[0])
        return self._parts[0] if self._parts else np.zeros(0, np.uint64)

    def keep_below(self, bound: int) -> None:
        hashes = self.read()
        self.bound = bound
        self._parts = [hashes[hashes < np.uint64(bound)]]
        self._sorted = len(self._parts[0])


def hash_byte_words(text: UInt8[np.ndarray, " B"]) -> Hashes:
    """Returns the hash of each word of a text in UTF-8: a polynomial in its bytes modulo 2^64."""
    is_word = IS_WORD[text]
    begins = is_word & ~np.concatenate([[False], is_word[:-1]]) | IS_IDEOGRAPH[text]
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, np.uint64)
    word = np.cumsum(begins) - 1
    offset = np.minimum(np.arange(len(text)) - starts[np.maximum(word, 0)], MAX_WORD_BYTES - 1)
    values = np.where(is_word, (text + np.uint64(1)) * POWERS[offset], np.uint64(0))
    return np.add.reduceat(values, starts)


def _hash_set(sets: dict[str, _HashSet], split: str) -> _HashSet:
    """Returns the set of a split; a new one is a sample like the others."""
    if split not in sets:
        sets[split] = _HashSet(min((s.bound for s in sets.values()), default=1 << 64))
    return sets[split]


def _shared(sets: Mapping[str, _HashSet], split: str, other: str) -> float:
    if split not in sets or other not in sets:
        return 0.0
    held_out, hashes = sets[split].read(), sets[other].read()
    if not len(held_out) or not len(hashes):
        return 0.0
    indices = np.minimum(np.searchsorted(hashes, held_out), len(hashes) - 1)
    return float((hashes[indices] == held_out).mean())


def _read_shared(folder: Path) -> list[SharedText]:
    """Returns what the splits in a folder share, [] if that was not recorded.

    Raises:
        DataError: if the record is damaged.
    """
    path = folder / SHARED_FILE
    if not path.is_file():
        return []
    try:
        record = json.loads(path.read_text())
        if isinstance(record, list):
            return [SharedText(**item) for item in record]
        if record["sha256"] == hash_json(record["shared"]):
            return [SharedText(**item) for item in record["shared"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); delete {folder} and run again") from error
    raise DataError(f"{path} is damaged: its sha256 differs; delete {folder} and run again")


def check_overlap(folder: Path, max_shared: float, source: str) -> None:
    """Refuses stores whose splits share more text than `max_shared`, a share.

    A folder that was built before shared text was recorded with a hash is accepted. If the ends of
    the documents are held out, their repetitions are only told.

    Raises:
        DataError: if a held-out split shares more with another one, or the record is damaged.
    """
    for shared in _read_shared(folder):
        if shared.share > max_shared:
            message = (
                f"{format_percent(shared.documents)} of the documents and "
                f"{format_percent(shared.ngrams)} of the {NGRAM_WORDS}-grams of words of the "
                f"{shared.split} split of {source} are in the {shared.other} split too, at most "
                f"{format_percent(max_shared)} may be (data.max_shared); use other files, remove "
                "duplicates with python -m data.prepare, or raise data.max_shared"
            )
            # One document may repeat itself, and a user's first file must not end in an error.
            if not read_index(folder / "train").get("hold_out"):
                raise DataError(message)
            LOG.warning("the score of the %s split will be too good: %s", shared.split, message)
