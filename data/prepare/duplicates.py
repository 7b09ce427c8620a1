"""Deduplication: finds earlier documents with the same text (hash) or similar words (MinHash).

MinHash (Broder 1997) stores, for each document, the smallest hash of its shingles (5 consecutive
words) under each of 128 permutations. The share of equal values of two documents estimates the
Jaccard similarity J of their shingles, with standard deviation sqrt(J (1 - J) / 128), which is .035
at .8. Two documents are candidates if they share a band of r values, with probability
1 - (1 - J^r)^(128 // r) (Leskovec et al., Mining of Massive Datasets, chapter 3). Here r is the
largest that finds .9 of the pairs at the threshold. Each candidate's estimate is compared with the
threshold too.
"""

import array
import hashlib
import importlib
import math
import unicodedata
from typing import Any

import numpy as np
from jaxtyping import UInt32, UInt64

from data.prepare.words import WHITE_SPACE, Hashes, iter_ngrams, iter_pieces
from errors import ConfigError

SHINGLE_WORDS = 5  # Number of words in a shingle.
NUM_PERMUTATIONS = 128
TARGET_RECALL = 0.9  # Share of the pairs at the threshold that become candidates.
# Number of shingles hashed at a time, in a table of SHINGLE_BATCH x NUM_PERMUTATIONS.
SHINGLE_BATCH = 4096
SIGNATURE_BLOCK = 4096  # Number of signatures in an array.
REFERENCE_DOCUMENTS = 32  # Maximum number of documents from which a reference is chosen.
COMPARED_DOCUMENTS = 256  # Number of signatures that are compared at a time.

Signature = UInt32[np.ndarray, "128"]
EqualBits = UInt64[np.ndarray, "2"]  # A bit for each value of a signature.


def text_digest(text: str) -> bytes:
    """Returns a digest of 16 bytes.

    It is equal for texts that differ only in white space or in their Unicode normal form.
    """
    digest, separator = hashlib.sha256(), ""
    for piece in iter_pieces(text, WHITE_SPACE):
        if words := unicodedata.normalize("NFC", piece).split():
            digest.update((separator + " ".join(words)).encode())
            separator = " "  # Every further piece begins with white space.
    return digest.digest()[:16]


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
        minhash = self.empty_minhash.copy()
        for _, ngrams in iter_ngrams(word_hashes, min(SHINGLE_WORDS, len(word_hashes))):
            shingles = np.unique(ngrams >> np.uint64(32))
            for i in range(0, len(shingles), SHINGLE_BATCH):
                minhash.update_batch(shingles[i : i + SHINGLE_BATCH].tolist())
        return minhash.hashvalues


class Bucket:
    """Documents that share a band, each with a bit where its signature equals a reference.

    The reference has the most frequent value of each place. Two signatures differ wherever exactly
    one of them equals it. This bounds their similarity by 16 bytes of a document, instead of the
    512 bytes of its signature. Pages of one template share many bands but stay below the bound, so
    that few of them are compared.
    """

    def __init__(self, store: "SignatureStore", documents: list[int]) -> None:
        self.store = store
        self.size = len(documents)
        self.documents = np.array(documents)
        self._choose_reference()

    def add(self, document: int, bits: EqualBits) -> None:
        """Adds a document."""
        if self.size == len(self.documents):
            self.documents = np.resize(self.documents, self.size * 2)
            self._choose_reference()
            bits = self.equal_bits(self.store[document])
        self.documents[self.size], self.bits[:, self.size] = document, bits
        self.size += 1

    def equal_bits(self, signature: Signature) -> EqualBits:
        """Returns a bit for each place, whether the signature equals the reference there."""
        return np.packbits(self.reference == signature).view(np.uint64)

    def find_candidates(self, bits: EqualBits, min_equal: int) -> np.ndarray:
        """Returns the documents that may have `min_equal` values in common with a signature."""
        different = np.zeros(self.size, np.uint8)
        for word, column in zip(bits, self.bits, strict=True):
            different += np.bitwise_count(column[: self.size] ^ word)
        return self.documents[: self.size][different <= NUM_PERMUTATIONS - min_equal]

    def _choose_reference(self) -> None:
        sample = self.store.take(self.documents[: min(self.size, REFERENCE_DOCUMENTS)])
        counts = (sample[:, None] == sample).sum(axis=1)
        self.reference = sample[counts.argmax(axis=0), np.arange(NUM_PERMUTATIONS)]
        self.bits = np.zeros((NUM_PERMUTATIONS // 64, len(self.documents)), np.uint64)
        for i in range(0, self.size, SIGNATURE_BLOCK):
            signatures = self.store.take(self.documents[i : min(i + SIGNATURE_BLOCK, self.size)])
            packed = np.packbits(signatures == self.reference, axis=1).view(np.uint64)
            self.bits[:, i : i + len(packed)] = packed.T


class SignatureStore:
    """The signatures of documents by their numbers, in blocks, so that growing copies nothing."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []
        self.size = 0

    def append(self, signature: Signature) -> None:
        """Adds the signature of the next document."""
        block, row = divmod(self.size, SIGNATURE_BLOCK)
        if not row:
            self.blocks.append(np.empty((SIGNATURE_BLOCK, NUM_PERMUTATIONS), np.uint32))
        self.blocks[block][row] = signature
        self.size += 1

    def __getitem__(self, document: int) -> Signature:
        return self.blocks[document // SIGNATURE_BLOCK][document % SIGNATURE_BLOCK]

    def take(self, documents: np.ndarray) -> UInt32[np.ndarray, "N 128"]:
        """Returns the signatures of several documents."""
        out = np.empty((len(documents), NUM_PERMUTATIONS), np.uint32)
        blocks, rows = np.divmod(documents, SIGNATURE_BLOCK)
        for block in set(blocks.tolist()):
            out[blocks == block] = self.blocks[block][rows[blocks == block]]
        return out


class NearDuplicates:
    """Signatures and locations of the documents that stay, indexed by bands."""

    def __init__(self, threshold: float) -> None:
        self.rows = rows_per_band(threshold)
        self.min_equal = math.ceil(threshold * NUM_PERMUTATIONS)
        self.locations = array.array("q")
        self.signatures = SignatureStore()
        self.buckets: dict[int, int | Bucket] = {}  # Band -> its only document, or several.

    def find_or_add(self, signature: Signature, location: int) -> tuple[int, float] | None:
        """Returns location and similarity of the first similar document; None: adds this one.

        Similar documents have an estimated Jaccard similarity of at least the threshold.
        """
        bands = hash_bands(signature, self.rows)
        joined: dict[int, tuple[Bucket, EqualBits]] = {}
        candidates: set[int] = set()
        for band in bands:
            bucket = self.buckets.get(band)
            if isinstance(bucket, Bucket):
                bits = bucket.equal_bits(signature)
                joined[band] = bucket, bits
                candidates.update(bucket.find_candidates(bits, self.min_equal).tolist())
            elif bucket is not None:
                candidates.add(bucket)
        if match := self._find_first(sorted(candidates), signature):
            return match
        self._add(signature, location, bands, joined)
        return None

    def _find_first(self, documents: list[int], signature: Signature) -> tuple[int, float] | None:
        """Returns location and similarity of the first of `documents` that is similar."""
        for i in range(0, len(documents), COMPARED_DOCUMENTS):
            some = documents[i : i + COMPARED_DOCUMENTS]
            counts = np.count_nonzero(self.signatures.take(np.array(some)) == signature, axis=1)
            for j in np.flatnonzero(counts >= self.min_equal)[:1]:
                return self.locations[some[j]], float(counts[j] / NUM_PERMUTATIONS)
        return None

    def _add(
        self,
        signature: Signature,
        location: int,
        bands: list[int],
        joined: dict[int, tuple[Bucket, EqualBits]],
    ) -> None:
        document = len(self.locations)
        self.locations.append(location)
        self.signatures.append(signature)
        for band in bands:
            if band in joined:
                bucket, bits = joined[band]
                bucket.add(document, bits)
            else:
                first = self.buckets.setdefault(band, document)
                if isinstance(first, int) and first != document:
                    self.buckets[band] = Bucket(self.signatures, [first, document])


def hash_bands(signature: Signature, rows: int) -> list[int]:
    """Returns a number for each band of `rows` values, equal for equal bands at one place."""
    count = NUM_PERMUTATIONS // rows
    values = signature[: count * rows].reshape(count, rows).astype("<u4")
    return [
        int.from_bytes(
            hashlib.blake2b(values[i], digest_size=8, salt=i.to_bytes(2, "little")).digest(),
            "little",
        )
        for i in range(count)
    ]


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
