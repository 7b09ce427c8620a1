"""Measurement of what a tokenizer loses: the share of a text's bytes that decode back.

A tokenizer that lower-cases, or that reads rare words as one unknown token, predicts an easier text
than the one whose bytes are counted. Its bits per byte are not those of the text.
"""

import math
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

import numpy as np

from data.tokenizers import Tokenizer

LOSSLESS_SHARE = 0.9999  # A tokenizer that gives back fewer bytes is lossy.
SAMPLE_CHARACTERS = 1 << 15  # Characters of a block of documents that are decoded.
PIECE_CHARACTERS = 256  # Characters that are aligned with what is decoded of them.


def lossy_sentence(decodes_back: Mapping[str, float]) -> str:
    """Returns what a lossy tokenizer means for bits per byte; "" if the tokenizer is lossless.

    Args:
        decodes_back: the share of the bytes of each split that decode back.
    """
    share = min(decodes_back.values(), default=1.0)
    if share >= LOSSLESS_SHARE:
        return ""
    return (
        f"The tokenizer is lossy: {math.floor(1000 * share) / 10:g} % of the bytes of the text "
        "decode back, so bits per byte are those of an easier text, and are not comparable with "
        "those of a lossless tokenizer."
    )


class RoundTrip:
    """Counts bytes of text and those of them that decode back, on a sample of what is added.

    Unknown tokens are counted in all of the text; each loses at least a byte.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._n_sampled = self._n_back = self._n_bytes = self._n_unknown = 0

    def add(self, texts: Sequence[str], ids: Sequence[np.ndarray]) -> None:
        """Adds the texts of a block and their ids, of which every n-th text is decoded."""
        unknown = self._tokenizer.specials.unk
        self._n_bytes += sum(len(text.encode()) for text in texts)
        if unknown >= 0:
            self._n_unknown += sum(int(np.count_nonzero(x == unknown)) for x in ids)
        stride = -(-sum(map(len, texts)) // SAMPLE_CHARACTERS)
        for text in texts[:: max(stride, 1)]:
            sample = text[:SAMPLE_CHARACTERS]
            self._n_sampled += len(sample.encode())
            self._n_back += bytes_that_decode_back(self._tokenizer, sample)

    @property
    def share(self) -> float:
        """The share of the bytes that decode back; 1 if there is no text."""
        sampled = self._n_back / self._n_sampled if self._n_sampled else 1.0
        return min(sampled, 1 - self._n_unknown / max(self._n_bytes, 1))


def bytes_that_decode_back(tokenizer: Tokenizer, text: str) -> int:
    """Returns how many bytes of a text stand in what the tokenizer decodes of it, in order."""
    if text in _decode(tokenizer, text):
        return len(text.encode())
    pieces = _pieces(text)
    back = [_common_bytes(piece, _decode(tokenizer, piece)) for piece in pieces if piece.strip()]
    return sum(back) + len(pieces) - 1


def _decode(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode([text])[0].tolist())


def _pieces(text: str) -> list[str]:
    """Returns the text in pieces of about PIECE_CHARACTERS, without the space between two of them.

    That space counts as given back: a tokenizer may drop one only where a text begins or ends.
    """
    pieces, start = list[str](), 0
    while len(text) - start > PIECE_CHARACTERS:
        cut = text.find(" ", start + PIECE_CHARACTERS)
        if cut < 0:
            break
        pieces.append(text[start:cut])
        start = cut + 1
    return [*pieces, text[start:]]


def _common_bytes(text: str, decoded: str) -> int:
    if text in decoded:
        return len(text.encode())
    blocks = SequenceMatcher(None, text, decoded, autojunk=False).get_matching_blocks()
    return sum(len(text[block.a : block.a + block.size].encode()) for block in blocks)
