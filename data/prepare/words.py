"""Words as the stages compare them, and hashes of n consecutive words.

A word is a run of letters, digits and underscores after NFKC normalization and case folding, or one
character of a script that is written without spaces. Hashes are the same on every machine and in
every process.
"""

import functools
import hashlib
import re
import unicodedata

import numpy as np
from jaxtyping import UInt64

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD_PATTERN = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
# Maximum number of characters of a word whose hash is cached, so that the cache stays small.
MAX_CACHED_LENGTH = 64
POLYNOMIAL_BASE = np.uint64(0x9E3779B97F4A7C15)

Hashes = UInt64[np.ndarray, " N"]


def split_words(text: str) -> list[str]:
    """Returns the words of a text after normalization."""
    return WORD_PATTERN.findall(unicodedata.normalize("NFKC", text).casefold())


def hash_words(words: list[str]) -> Hashes:
    """Returns the 64-bit hash of each word."""
    hashes = (
        _cached_hash_word(word) if len(word) <= MAX_CACHED_LENGTH else _hash_word(word)
        for word in words
    )
    return np.fromiter(hashes, np.uint64, len(words))


def hash_ngrams(word_hashes: Hashes, n: int) -> Hashes:
    """Returns the hash of each n consecutive words, [max(0, W - n + 1)].

    It is a polynomial in the hashes of the words modulo 2^64, followed by the finalizer of
    SplitMix64 (Steele et al., OOPSLA 2014), so that every bit is usable.
    """
    count = max(0, len(word_hashes) - n + 1)
    x = np.zeros(count, np.uint64)
    for i in range(n):
        x = x * POLYNOMIAL_BASE + word_hashes[i : i + count]
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash_word(word: str) -> int:
    raw = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


_cached_hash_word = functools.lru_cache(maxsize=1 << 17)(_hash_word)
