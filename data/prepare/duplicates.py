"""Documents that came before: exactly, by a hash, or nearly, by MinHash.

MinHash (Broder 1997) keeps of a document the smallest hash of its shingles, 5 words in a row, under
128 permutations; the share of them that two documents have in common estimates the Jaccard
similarity J of their shingles (standard deviation sqrt(J (1 - J) / 128), .035 at .8). Candidates
share a band of r values: a pair is one with probability 1 - (1 - J^r)^(128 // r) (Leskovec et al.,
Mining of Massive Datasets, chapter 3). Here r is the largest that finds .9 of the pairs at the
threshold, and each candidate's estimate is compared with the threshold too.
"""

import hashlib
import importlib
import unicodedata
from typing import Any

import numpy as np
from jaxtyping import UInt32

from data.prepare.words import Hashes, ngrams
from errors import ConfigError

SHINGLE = 5  # words
PERMUTATIONS = 128
FOUND = 0.9  # of the pairs at the threshold
PIECE = 4096  # shingles at a time: a table of this times PERMUTATIONS is built

Signature = UInt32[np.ndarray, "128"]


def digest(text: str) -> bytes:
    """16 bytes, equal for texts that differ only in white space or in how Unicode spells them."""
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.sha256(plain.encode()).digest()[:16]


class Exact:
    """Where each text was first seen."""

    def __init__(self) -> None:
        self.seen: dict[bytes, int] = {}

    def first(self, key: bytes, place: int) -> int | None:
        """The place of an earlier document with this digest, else None: `place` is the first."""
        first = self.seen.setdefault(key, place)
        return None if first == place else first


class Signer:
    """Signatures of documents; a short document is one shingle, one without words has none."""

    def __init__(self) -> None:
        self.start = library().MinHash(PERMUTATIONS, hashfunc=int)

    def __call__(self, codes: Hashes) -> Signature | None:
        shingles = np.unique(ngrams(codes, min(SHINGLE, len(codes))) >> np.uint64(32))
        if not len(codes):
            return None
        minhash = self.start.copy()
        for i in range(0, len(shingles), PIECE):
            minhash.update_batch(shingles[i : i + PIECE].tolist())
        return minhash.hashvalues


class Near:
    """Signatures of the documents kept, and their places, by bands."""

    def __init__(self, threshold: float) -> None:
        rows = rows_of_a_band(threshold)
        self.start = library().MinHash(PERMUTATIONS, hashfunc=int)
        bands = PERMUTATIONS // rows, rows
        self.index = library().MinHashLSH(
            threshold, PERMUTATIONS, params=bands, hashfunc=_short_key
        )
        self.signatures: dict[int, Signature] = {}
        self.threshold = threshold

    def first(self, signature: Signature, place: int) -> tuple[int, float] | None:
        """The place of the first document kept that is alike, and how much; None: kept now."""
        minhash = self.start.copy()
        minhash.hashvalues = signature
        for other in sorted(self.index.query(minhash)):
            alike = float(np.mean(self.signatures[other] == signature))
            if alike >= self.threshold:
                return other, alike
        self.index.insert(place, minhash)
        self.signatures[place] = signature
        return None


def rows_of_a_band(threshold: float) -> int:
    """The most rows with which FOUND of the pairs at the threshold become candidates."""
    return max(
        rows
        for rows in range(1, PERMUTATIONS // 2 + 1)
        if rows == 1 or 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= FOUND
    )


def library() -> Any:
    """datasketch, which is an extra."""
    try:
        return importlib.import_module("datasketch")
    except ImportError as error:
        raise ConfigError(
            "near duplicates need datasketch: pip install 'isoflop[prepare]', or set --near=0"
        ) from error


def _short_key(band: bytes) -> bytes:
    return hashlib.blake2b(band, digest_size=8).digest()
