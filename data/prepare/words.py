"""Words as the stages compare them, and hashes of n words in a row.

A word is a run of letters, digits and underscores after NFKC and case folding, or one character of
a script written without spaces. Hashes are the same on every machine and in every process.
"""

import functools
import hashlib
import re
import unicodedata

import numpy as np
from jaxtyping import UInt64

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
LONG = 64  # characters; longer words are hashed anew each time, so that the memory is bounded
BASE = np.uint64(0x9E3779B97F4A7C15)

Hashes = UInt64[np.ndarray, " N"]


def words(text: str) -> list[str]:
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def hashes(found: list[str]) -> Hashes:
    """The 64-bit hash of each word."""
    codes = (_known(word) if len(word) <= LONG else _hash(word) for word in found)
    return np.fromiter(codes, np.uint64, len(found))


def ngrams(codes: Hashes, n: int) -> Hashes:
    """The hash of each n words in a row, from the hashes of the words: [max(0, W - n + 1)].

    A polynomial in the hashes of the words modulo 2^64, then the finaliser of SplitMix64 (Steele
    et al., OOPSLA 2014), so that any of its bits will do.
    """
    count = max(0, len(codes) - n + 1)
    x = np.zeros(count, np.uint64)
    for i in range(n):
        x = x * BASE + codes[i : i + count]
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash(word: str) -> int:
    raw = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


_known = functools.lru_cache(maxsize=1 << 17)(_hash)
