"""What objectives need of a tokenizer: its size, its special ids, and which ids begin a word."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from errors import ConfigError


class SpecialIds(Protocol):
    """The special ids of a tokenizer."""

    @property
    def pad(self) -> int:
        """The id of padding, or -1."""

    @property
    def bos(self) -> int:
        """The id of the beginning of a document, or -1."""

    @property
    def eos(self) -> int:
        """The id of the end of a document, or -1."""

    @property
    def sep(self) -> int:
        """The id of the separator of two texts, or -1."""

    @property
    def cls(self) -> int:
        """The id of the token that classifies a text, or -1."""

    @property
    def mask(self) -> int:
        """The id of the token that replaces a masked one, or -1."""

    @property
    def decoder_start(self) -> int:
        """The id from which a decoder starts, or -1."""

    @property
    def sentinels(self) -> tuple[int, ...]:
        """The ids that stand for removed spans, or an empty tuple."""

    @property
    def modes(self) -> tuple[int, ...]:
        """The ids that name a kind of corruption (UL2), or an empty tuple."""

    def require(self, *names: str, needed_by: str) -> None:
        """Refuses a tokenizer that lacks one of the ids `names`.

        Raises:
            DataError: if an id is missing.
        """


class TokenizerLike(Protocol):
    """A tokenizer as objectives use it."""

    @property
    def vocab_size(self) -> int:
        """The number of ids, without padding."""

    @property
    def specials(self) -> SpecialIds:
        """The special ids."""

    @property
    def non_text_ids(self) -> np.ndarray:
        """The ids that stand for no text: special, unknown and unused ones."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`."""


class DummySpecials(NamedTuple):
    """Placeholder special ids with one id for every purpose."""

    pad: int = 0
    bos: int = 1
    eos: int = 2
    sep: int = 3
    cls: int = 4
    mask: int = 5
    sentinels: tuple[int, ...] = tuple(range(8, 108))
    modes: tuple[int, ...] = (108, 109, 110)
    decoder_start: int = 1

    def require(self, *names: str, needed_by: str) -> None:
        """Accepts every name, since no special id is missing."""

    @property
    def all_ids(self) -> np.ndarray:
        """All special ids, sorted."""
        singles = (self.pad, self.bos, self.eos, self.sep, self.cls, self.mask)
        return np.array(sorted({*singles, *self.sentinels, *self.modes}), np.int32)


class DummyTokenizer(NamedTuple):
    """A placeholder for a tokenizer where only the shapes of rows matter."""

    vocab_size: int = 128
    specials: DummySpecials = DummySpecials()

    @property
    def non_text_ids(self) -> np.ndarray:
        """The ids that stand for no text."""
        return self.specials.all_ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns an empty text."""
        return ""


def is_text_id(tokenizer: TokenizerLike) -> np.ndarray:
    """Returns a bool for each id: whether the id is text; others are never masked nor inserted."""
    is_text = np.ones(tokenizer.vocab_size, bool)
    is_text[tokenizer.non_text_ids] = False
    return is_text


def is_word_start(tokenizer: TokenizerLike) -> np.ndarray:
    """Returns a bool for each id: whether a word begins with it, that is, a space precedes it.

    Decoders drop a space at the beginning of a text, and some decode every token that starts a word
    with a space (WordPiece). Therefore each id is decoded after another token.

    Raises:
        ConfigError: if no id of the tokenizer begins with a space.
    """
    text_ids = np.flatnonzero(is_text_id(tokenizer))
    texts = {i: tokenizer.decode([i]) for i in map(int, text_ids)}
    is_start = np.zeros(tokenizer.vocab_size, bool)
    previous = next((i for i, text in texts.items() if text.strip() == text != ""), -1)
    if previous < 0:  # The vocabulary has no text.
        return is_start
    for i in texts:
        is_start[i] = tokenizer.decode([previous, i])[len(texts[previous]) :][:1].isspace()
    if not is_start.any():
        raise ConfigError(
            "masked_lm.whole_words: no token of this tokenizer begins with a space, so the "
            "beginnings of words are unknown; set it to false"
        )
    return is_start


def require_single_stack(objective: str, encoder_depth: int) -> None:
    """Refuses an encoder-decoder for an objective that needs a model of one stack.

    Raises:
        ConfigError: if the model has an encoder.
    """
    if encoder_depth:
        raise ConfigError(
            f"objective {objective} has no input for an encoder, but model.encoder.depth is "
            f"{encoder_depth}; set it to 0, or use objective=denoising"
        )
