"""Deduplication: finds earlier documents with the same text (hash) or similar words (MinHash).

MinHash (Broder 1997) stores, for each document, the smallest hash of its shingles (5 consecutive
words) under each of 128 permutations. The share of equal values of two documents estimates the
Jaccard similarity J of their shingles, with standard deviation sqrt(J (1 - J) / 128), which is .035
at .8. Two documents are candidates if they share a band of r values, with probability
1 - (1 - J^r)^(128 // r) (Leskovec et al., Mining of Massive Datasets, chapter 3). Here r is the
largest that finds .9 of the pairs at the threshold. Each candidate's estimate is compared with the
threshold too.
"""

import hashlib
import importlib
import unicodedata
from typing import Any

import numpy as np
from jaxtyping import UInt32

from data.prepare.words import Hashes, hash_ngrams
from errors import ConfigError

SHINGLE_WORDS = 5  # Number of words in a shingle.
NUM_PERMUTATIONS = 128
TARGET_RECALL = 0.9  # Share of the pairs at the threshold that become candidates.
# Number of shingles hashed at a time, in a table of SHINGLE_BATCH x NUM_PERMUTATIONS.
SHINGLE_BATCH = 4096

Signature = UInt32[np.ndarray, "128"]


def text_digest(text: str) -> bytes:
    """Returns a digest of 16 bytes.

    It is equal for texts that differ only in white space or in their Unicode normal form.
    """
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.sha256(plain.encode()).digest()[:16]


class ExactDuplicates:
    """Locations of the first document with each text."""

    def __init__(self) -> None:
        self.locations: dict[bytes, int] = {}

    def find_or_add(self, digest: bytes, location: int) -> int | None:
        """Returns the location of an earlier document with this digest; None: adds this one."""
        first = self.locations.setdefault(digest, location)
        return None if first == location else first


class MinHasher:
    """MinHash signatures of documents.

    A short document is one shingle. A document without words has no signature.
    """

    def __init__(self) -> None:
        self.empty_minhash = import_datasketch().MinHash(NUM_PERMUTATIONS, hashfunc=int)

    def __call__(self, word_hashes: Hashes) -> Signature | None:
        """Returns the signature of a document from the hashes of its words."""
        if not len(word_hashes):
            return None
        ngrams = hash_ngrams(word_hashes, min(SHINGLE_WORDS, len(word_hashes)))
        shingles = np.unique(ngrams >> np.uint64(32))
        minhash = self.empty_minhash.copy()
        for i in range(0, len(shingles), SHINGLE_BATCH):
            minhash.update_batch(shingles[i : i + SHINGLE_BATCH].tolist())
        return minhash.hashvalues


class NearDuplicates:
    """Signatures and locations of the documents that stay, indexed by bands."""

    def __init__(self, threshold: float) -> None:
        rows = rows_per_band(threshold)
        self.empty_minhash = import_datasketch().MinHash(NUM_PERMUTATIONS, hashfunc=int)
        bands = NUM_PERMUTATIONS // rows, rows
        self.lsh = import_datasketch().MinHashLSH(
            threshold, NUM_PERMUTATIONS, params=bands, hashfunc=_hash_band
        )
        self.signatures: dict[int, Signature] = {}
        self.threshold = threshold

    def find_or_add(self, signature: Signature, location: int) -> tuple[int, float] | None:
        """Returns location and similarity of the first similar document; None: adds this one.

        Similar documents have an estimated Jaccard similarity of at least the threshold.
        """
        minhash = self.empty_minhash.copy()
        minhash.hashvalues = signature
        for candidate in sorted(self.lsh.query(minhash)):
            similarity = float(np.mean(self.signatures[candidate] == signature))
            if similarity >= self.threshold:
                return candidate, similarity
        self.lsh.insert(location, minhash)
        self.signatures[location] = signature
        return None


def rows_per_band(threshold: float) -> int:
    """Returns the maximum rows per band with at least TARGET_RECALL of pairs at the threshold."""
    return max(
        rows
        for rows in range(1, NUM_PERMUTATIONS // 2 + 1)
        if rows == 1 or 1 - (1 - threshold**rows) ** (NUM_PERMUTATIONS // rows) >= TARGET_RECALL
    )


def import_datasketch() -> Any:
    """Imports datasketch, which is an optional dependency.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        return importlib.import_module("datasketch")
    except ImportError as error:
        raise ConfigError(
            "near duplicates need datasketch: pip install 'isoflop[prepare]', or set "
            "--jaccard_threshold=0"
        ) from error


def _hash_band(band: bytes) -> bytes:
    return hashlib.blake2b(band, digest_size=8).digest()
