"""Text that splits share: equal documents, and 13 consecutive words that occur in two splits.

A model that has read the text on which it is evaluated is not evaluated. The length is that of
GPT-3's contamination analysis (Brown et al., arXiv:2005.14165, appendix C). Memory is bounded: of
more than `MAX_HASHES` n-grams, those with the smallest hashes are compared, which are a uniform
sample (Broder 1997). Words are cut by arithmetic on bytes, without the Unicode normalization of
`data/prepare/words.py`, since every store that is built pays for them.

Texts of text pairs are short, and their corpora may quote: .16 % of the 13-grams of the embedded
corpus's validation pairs are in training pairs, all in quotations. A text pair is therefore leaked
if most 13-grams of one of its texts, or of anchor and match together, are in another split.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8, UInt64

from data.readers.long_text import LONG_TEXT_BYTES
from data.store_index import hash_json, read_index
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
    similar: float | None = (
        None  # Texts of text pairs of which most 13-grams occur; None: no pairs.
    )

    @property
    def share(self) -> float:
        """The largest share that counts."""
        return max(self.documents, self.ngrams if self.similar is None else self.similar)


class SplitOverlap:
    """Collects the hashes of documents and n-grams of each split, in one pass over the text."""

    def __init__(self, max_hashes: int = MAX_HASHES) -> None:
        self._ngrams: dict[str, _HashSet] = {}
        self._documents: dict[str, _HashSet] = {}
        self._pair_texts: dict[str, _TextSample] = {}
        self._max_hashes = max_hashes

    def add(self, split: str, texts: Iterable[str]) -> None:
        """Adds the text of documents; those of less than 13 words are too short to compare."""
        for text in texts:
            # A long text is added in pieces, since arrays have a number for each byte.
            for start in range(0, len(text), LONG_TEXT_BYTES):
                hashes = _hash_text(text[start : start + LONG_TEXT_BYTES])
                if hashes is not None:
                    self._add(split, hashes)

    def add_pair(self, split: str, texts: Sequence[str]) -> None:
        """Adds the texts of a text pair, and its anchor and match as one text."""
        for hashes in map(_hash_text, (*texts, " ".join(texts[:2]))):
            if hashes is not None:
                self._add(split, hashes)
                self._pair_texts.setdefault(split, _TextSample(self._max_hashes >> 2)).add(hashes)

    def add_image(self, split: str, image_hash: str) -> None:
        """Adds an image by its hash in hexadecimal digits; texts of images may be alike."""
        document = np.array([int(image_hash[:16], 16)], np.uint64)
        self._add(split, _TextHashes(document=document, ngrams=np.zeros(0, np.uint64)))

    def _add(self, split: str, hashes: "_TextHashes") -> None:
        _hash_set(self._documents, split).add(hashes.document)
        _hash_set(self._ngrams, split).add(hashes.ngrams)
        for sets in (self._documents, self._ngrams):
            while sum(s.size for s in sets.values()) > self._max_hashes:
                bound = min(s.bound for s in sets.values()) // 2
                for hash_set in sets.values():
                    hash_set.keep_below(bound)

    def shared_texts(self) -> list[SharedText]:
        """Returns what the held-out splits share with each other and with the training split."""
        return [
            SharedText(
                split,
                other,
                _shared(self._documents, split, other),
                _shared(self._ngrams, split, other),
                self._similar_share(split, other) if self._pair_texts else None,
            )
            for split, other in PAIRS
        ]

    def _similar_share(self, split: str, other: str) -> float:
        """Returns the share of the texts of text pairs of which most n-grams are in `other`."""
        if split not in self._pair_texts or other not in self._ngrams:
            return 0.0
        bound = np.uint64(self._ngrams[other].bound - 1)
        texts = [ngrams[ngrams <= bound] for ngrams in self._pair_texts[split].ngrams()]
        sizes = np.array([len(ngrams) for ngrams in texts if len(ngrams)])
        if not len(sizes):
            return 0.0
        is_shared = self._ngrams[other].contains(np.concatenate(texts))
        n_shared = np.add.reduceat(is_shared.astype(np.int64), np.cumsum(sizes) - sizes)
        return float((n_shared > sizes / 2).mean())

    def write(self, folder: Path) -> None:
        """Writes what the splits share to a folder of token stores, for `check_overlap`."""
        shared = [shared._asdict() for shared in self.shared_texts()]
        text = json.dumps({"shared": shared, "sha256": hash_json(shared)})
        (folder / SHARED_FILE).write_text(text)


class _TextHashes(NamedTuple):
    """The hash of a text, an array of one number, and those of its n-grams."""

    document: Hashes
    ngrams: Hashes


def _hash_text(text: str) -> _TextHashes | None:
    """Returns the hashes of a text, None if it is too short."""
    raw = text.lower().encode(errors="surrogatepass")
    words = hash_byte_words(np.frombuffer(raw, np.uint8))
    count = len(words) - NGRAM_WORDS + 1
    if count < 1:
        return None
    digest = hashlib.blake2b(raw, digest_size=8).digest()
    shifted = (words[i : i + count] * POWERS[i] for i in range(NGRAM_WORDS))
    ngrams = sum(shifted, np.zeros(count, np.uint64))
    return _TextHashes(np.frombuffer(digest, "<u8"), ngrams)


class _TextSample:
    """The n-grams of single texts; of many, those texts with the smallest hashes."""

    def __init__(self, max_hashes: int) -> None:
        self._bound = 1 << 64
        self._texts: list[_TextHashes] = []
        self._size, self._max_hashes = 0, max_hashes

    def add(self, hashes: _TextHashes) -> None:
        if int(hashes.document[0]) >= self._bound:
            return
        self._texts.append(hashes)
        self._size += len(hashes.ngrams)
        while self._size > self._max_hashes:
            self._bound //= 2
            self._texts = [text for text in self._texts if int(text.document[0]) < self._bound]
            self._size = sum(len(text.ngrams) for text in self._texts)

    def ngrams(self) -> Iterator[Hashes]:
        """Yields the n-grams of each text."""
        return (text.ngrams for text in self._texts)


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
        if self._pending:
            hashes = np.concatenate(self._parts)
            self._parts = []  # They must not be in memory twice.
            hashes.sort()  # Far faster than np.unique.
            is_first = np.ones(len(hashes), bool)
            np.not_equal(hashes[1:], hashes[:-1], out=is_first[1:])
            self._parts = [hashes[is_first]]
            self._pending, self._sorted = 0, len(self._parts[0])
        return self._parts[0] if self._parts else np.zeros(0, np.uint64)

    def contains(self, values: Hashes) -> Bool[np.ndarray, " N"]:
        """Returns which of the values are in the set."""
        hashes = self.read()
        if not len(hashes):
            return np.zeros(len(values), bool)
        indices = np.minimum(np.searchsorted(hashes, values), len(hashes) - 1)
        return hashes[indices] == values

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
    # Before the first word, offsets would be negative.
    offset = np.clip(np.arange(len(text)) - starts[np.maximum(word, 0)], 0, MAX_WORD_BYTES - 1)
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
    held_out = sets[split].read()
    return float(sets[other].contains(held_out).mean()) if len(held_out) else 0.0


def read_shared(folder: Path) -> list[SharedText]:
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
    the documents are held out, their repetitions are only a warning.

    Raises:
        DataError: if a held-out split shares more with another one, or the record is damaged.
    """
    for shared in read_shared(folder):
        if shared.share > max_shared:
            parts = (
                f"{format_percent(shared.documents)} of the documents and "
                f"{format_percent(shared.ngrams)} of the {NGRAM_WORDS}-grams of words"
                if shared.similar is None
                else f"{format_percent(shared.documents)} of the texts of the text pairs, and most "
                f"{NGRAM_WORDS}-grams of words of {format_percent(shared.similar)} of them,"
            )
            cure = (
                ""
                if shared.similar is not None
                else "remove duplicates with python -m data.prepare, "
            )
            message = (
                f"{parts} of the {shared.split} split of {source} are in the {shared.other} split "
                f"too, at most {format_percent(max_shared)} may be (data.max_shared); use other "
                f"files, {cure}or raise data.max_shared"
            )
            # One document may repeat itself, and a user's first file must not end in an error.
            if not read_index(folder / "train").get("hold_out"):
                raise DataError(message)
            LOG.warning("the score of the %s split will be too good: %s", shared.split, message)
