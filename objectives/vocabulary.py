"""What an objective asks of a tokenizer: its size, its specials, and which ids begin a word."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from errors import ConfigError


class Tokenizer(Protocol):
    """`specials` has pad, bos, eos, sep, cls, mask: ids or -1; sentinels, modes: tuples of ids."""

    @property
    def vocab(self) -> int:
        """Number of ids, without padding."""

    @property
    def specials(self) -> Any: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class BlankSpecials(NamedTuple):
    pad: int = 0
    bos: int = 1
    eos: int = 2
    sep: int = 3
    cls: int = 4
    mask: int = 5
    sentinels: tuple[int, ...] = tuple(range(8, 108))
    modes: tuple[int, ...] = (108, 109, 110)

    def require(self, *names: str, what: str) -> None:
        """It has them all."""


class Blank(NamedTuple):
    """Stands in for a tokenizer where only the shapes of rows matter."""

    vocab: int = 128
    specials: BlankSpecials = BlankSpecials()

    def decode(self, ids: Iterable[int]) -> str:
        return ""


def special_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Ids that are no text: never hidden, never put in by chance."""
    s = tokenizer.specials
    ids = (s.pad, s.bos, s.eos, s.sep, s.cls, s.mask, *s.sentinels, *s.modes)
    return np.array(sorted({i for i in ids if i >= 0}), np.int32)


def ordinary(tokenizer: Tokenizer) -> np.ndarray:
    """bool by id: it is text."""
    found = np.ones(tokenizer.vocab, bool)
    found[special_ids(tokenizer)] = False
    return found


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """bool by id: a word begins with it, because a space stands before it in a text.

    Decoders drop a space at the beginning, and some make one of every token that does not go on
    (WordPiece): so it is looked for behind another token. ConfigError if there is none.
    """
    known = np.flatnonzero(ordinary(tokenizer))
    texts = {i: tokenizer.decode([i]) for i in map(int, known)}
    found = np.zeros(tokenizer.vocab, bool)
    before = next((i for i, text in texts.items() if text.strip() == text != ""), -1)
    if before < 0:  # nothing is text
        return found
    for i in texts:
        found[i] = tokenizer.decode([before, i])[len(texts[before]) :][:1].isspace()
    if not found.any():
        raise ConfigError(
            "masked_lm.whole_words: no token of this tokenizer begins with a space, so that it is "
            "not known where words begin; set it to false"
        )
    return found


def no_source(name: str, encoder_depth: int) -> None:
    """Refuse an encoder-decoder for an objective of one stack."""
    if encoder_depth:
        raise ConfigError(
            f"objective {name} has no source for model.encoder.depth {encoder_depth}; "
            "use denoising, or set it to 0"
        )
