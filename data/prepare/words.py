"""Words as the stages compare them, and hashes of n consecutive words.

A word is a run of letters, digits and combining marks after NFKC normalization and case folding, or
one character of a script that is written without spaces. Characters that are not visible, such as
soft hyphens and zero-width spaces, marks that strike a letter through, and the Arabic stretch sign
are dropped first; underscores separate words. Hashes are the same on every machine and in every
process.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt64

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\u3040-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua980-\ua9ff\uaa60-\uaadf\U00020000-\U0003ffff"
)
# The code points with the property Default_Ignorable_Code_Point of Unicode, which NFKC_Casefold
# removes; then the Arabic tatweel, and marks that overlay or enclose a character.
IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\u0640\u0334-\u0338\u20d0-\u20dc\u20dd-\u20f0]"
)
MARK_CODES = range(0x300, 0x1F000)  # Code points among which all marks are.
# Number of characters that are split into words at a time, so that a long text needs little memory.
PIECE_CHARACTERS = 1 << 16
# Maximum number of characters of a word whose hash is cached, so that the cache stays small.
MAX_CACHED_LENGTH = 64
NGRAM_BATCH = 1 << 16  # Number of n-grams hashed at a time.
POLYNOMIAL_BASE = np.uint64(0x9E3779B97F4A7C15)

Hashes = UInt64[np.ndarray, " N"]


def split_words(text: str) -> list[str]:
    """Returns the words of a text after normalization."""
    if text.isascii():
        return ASCII_WORD.findall(text.lower())
    folded = unicodedata.normalize("NFKC", IGNORABLE.sub("", text)).casefold()
    return WORD.findall(unicodedata.normalize("NFKC", folded))


def iter_pieces(text: str, boundary: re.Pattern[str] | None = None) -> Iterator[str]:
    """Yields a text in pieces of about PIECE_CHARACTERS, cut before a match of `boundary`.

    The default are the places where no word continues.
    """
    boundary, start = boundary or BOUNDARY, 0
    while start < len(text):
        cut = boundary.search(text, start + PIECE_CHARACTERS)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


def hash_text(text: str) -> Hashes:
    """Returns the 64-bit hash of each word of a text."""
    parts = [hash_words(split_words(piece)) for piece in iter_pieces(text)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.zeros(0, np.uint64)])


def find_words(text: str, start: int, stop: int) -> list[str]:
    """Returns the words `start` to `stop` of a text."""
    words: list[str] = []
    for piece in iter_pieces(text):
        words += split_words(piece)
        if len(words) >= stop:
            break
        dropped = min(len(words), start)
        del words[:dropped]
        start, stop = start - dropped, stop - dropped
    return words[start:stop]


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


def iter_ngrams(word_hashes: Hashes, n: int) -> Iterator[tuple[int, Hashes]]:
    """Yields the hashes of n consecutive words in batches, each with the index of its first."""
    for i in range(0, len(word_hashes) - n + 1, NGRAM_BATCH):
        yield i, hash_ngrams(word_hashes[i : i + NGRAM_BATCH + n - 1], n)


def _hash_word(word: str) -> int:
    raw = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


_cached_hash_word = functools.lru_cache(maxsize=1 << 17)(_hash_word)


def _list_marks() -> str:
    """Returns a pattern of the combining marks (Mn, Mc, Me) of scripts that are spaced.

    `re` searches a class with characters beyond U+FFFF slowly, so they have a class of their own.
    """
    unspaced = re.compile(f"[{UNSPACED}]")
    marks = [c for c in map(chr, MARK_CODES) if unicodedata.category(c)[0] == "M"]
    spaced = [c for c in marks if not unspaced.match(c)]
    near, far = ("".join(c for c in spaced if (c > "\uffff") == is_far) for is_far in (False, True))
    return f"[{near}]|(?=[\U00010000-\U0010ffff])[{far}]"


def _list_unspaced_marks() -> str:
    matches = re.finditer(f"[{UNSPACED}]", "".join(map(chr, MARK_CODES)))
    return "".join(m[0] for m in matches if unicodedata.category(m[0])[0] == "M")


WHITE_SPACE = re.compile(r"\s")
ASCII_WORD = re.compile("[a-z0-9]+")
# A word begins with a letter or digit. Marks of scripts without spaces are words of their own.
LETTER = f"[^\\W_{UNSPACED}]"
WORD = re.compile(
    f"{LETTER}(?:{LETTER}+|{_list_marks()})*|(?=[\\w{_list_unspaced_marks()}])[{UNSPACED}]"
)
# A text may be cut before white space, and before a character that is a word.
BOUNDARY = re.compile(f"\\s|(?=\\w)[{UNSPACED}]")
