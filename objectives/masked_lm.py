"""Recover hidden tokens from both sides (BERT, Devlin et al., arXiv:1810.04805).

A share `rate` of a row's text is chosen; of these tokens most become the mask, some another token,
some stay. Logits are computed where tokens were chosen, so that the head costs `rate` of its price.
"""

import functools
import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from arch import ModelConfig, Sequence
from errors import ConfigError
from objectives.learner import Example, Learner, Metrics, Rows, Term
from objectives.scoring import Scored, score_some, terms_of
from objectives.vocabulary import Tokenizer, no_source, ordinary, word_starts
from schema import Count, Positive, Share, config

JUDGED_RATE = 0.15  # whatever the training rate


@config
class MaskedLM:
    rate: Positive = 0.15  # share of the text that is chosen
    mask: Share = 0.8  # of the chosen: becomes the mask
    random: Share = 0.1  # of the chosen: becomes any token; the rest stays
    whole_words: bool = False  # all tokens of a word or none
    ngram: Count = 1  # up to so many neighbours (words, if whole) are chosen together

    additive: ClassVar[bool] = True
    bank: ClassVar[None] = None

    def check(self) -> None:
        if self.rate >= 1:
            raise ConfigError(f"masked_lm.rate is {self.rate}, must be below 1, as 0.15")
        if self.mask + self.random > 1 + 1e-9:
            raise ConfigError(
                f"masked_lm.mask {self.mask} + masked_lm.random {self.random} is above 1; "
                f"nearest: random {max(1 - self.mask, 0):g}"
            )

    def rows(self, model: ModelConfig, length: int) -> Rows:
        no_source("masked_lm", model.encoder.depth)
        return Rows(length, 0, "both", targets=self.budget(length), in_place=True)

    def judged(self) -> "MaskedLM":
        """As it is evaluated: the same for every training rate."""
        return MaskedLM(rate=JUDGED_RATE, mask=1.0, random=0.0)

    def host(self, model: ModelConfig, length: int, tokenizer: Tokenizer) -> Example:
        tokenizer.specials.require("mask", what="objective masked_lm")
        text = ordinary(tokenizer)
        starts = word_starts(tokenizer) if self.whole_words else None
        hide = functools.partial(
            self._hidden, text=text, starts=starts, mask=tokenizer.specials.mask
        )

        def example(
            pieces: list[np.ndarray], length: int, rng: np.random.Generator
        ) -> dict[str, np.ndarray]:
            tokens, positions, segments = packed(pieces, length)
            chosen, shown = hide(tokens, segments, rng)
            return {
                "tokens": shown,
                "targets": tokens,
                "weights": chosen.astype(np.float32),
                "positions": positions,
                "segments": segments,
                "prefix": np.zeros(length, bool),
            }

        return example

    def head(self, model: ModelConfig, key: Array) -> None:
        return None

    def weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        return {"masked_nats": jnp.sum(batch["weights"], dtype=jnp.float32)}

    def encode(self, learner: Learner, micro: dict[str, Array], key: Array | None) -> Scored:
        seq = Sequence.of(micro, "both")
        hidden, aux, _ = learner.model(micro["tokens"], seq, key=key)
        return score_some(learner, hidden, micro, self.budget(seq.segments.shape[1]), aux)

    def reduce(
        self, learner: Learner, out: Scored, batch: dict[str, Array]
    ) -> tuple[dict[str, Term], Metrics]:
        total = self.weights(batch)["masked_nats"]
        return terms_of("masked_nats", learner, out, total, batch)

    def budget(self, length: int) -> int:
        """How many tokens of a row may be chosen."""
        return min(length, math.ceil(self.rate * length))

    def _hidden(
        self,
        tokens: np.ndarray,
        segments: np.ndarray,
        rng: np.random.Generator,
        *,
        text: np.ndarray,
        starts: np.ndarray | None,
        mask: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens are chosen, and the row as the model sees it."""
        may = text[tokens] & (segments != 0)
        count = min(self.budget(len(tokens)), round(self.rate * int(may.sum())) or int(may.any()))
        if self.ngram == 1 and starts is None:
            chosen = np.zeros(len(tokens), bool)
            chosen[rng.permutation(np.flatnonzero(may))[:count]] = True
        else:
            chosen = self._grouped(tokens, segments, may, count, starts, rng)
        fate, shown = rng.random(len(tokens)), tokens.copy()
        other = rng.choice(np.flatnonzero(text), len(tokens)).astype(tokens.dtype)
        masked = chosen & (fate < self.mask)
        shown[masked] = mask
        swapped = chosen & ~masked & (fate < self.mask + self.random)
        shown[swapped] = other[swapped]
        return chosen, shown

    def _grouped(
        self,
        tokens: np.ndarray,
        segments: np.ndarray,
        may: np.ndarray,
        count: int,
        starts: np.ndarray | None,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Words or n-grams in random order, each while it fits what is left of `count`."""
        breaks = segments != np.roll(segments, 1)
        breaks |= ~may | ~np.roll(may, 1) | (True if starts is None else starts[tokens])
        breaks[:1] = True
        unit = np.cumsum(breaks) - 1
        edges = np.append(np.flatnonzero(breaks), len(tokens))
        chosen, left = np.zeros(len(tokens), bool), count
        for first in rng.permutation(np.unique(unit[may])):
            low = edges[first]
            size = int(rng.integers(1, self.ngram + 1))
            high = edges[min(first + size, len(edges) - 1)]
            span = np.arange(low, high)
            span = span[may[span] & (segments[span] == segments[low]) & ~chosen[span]]
            if 0 < len(span) <= left:
                chosen[span] = True
                left -= len(span)
        return chosen


def packed(pieces: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and segments of a row of whole pieces, each [length]."""
    tokens, positions, segments = (np.zeros(length, np.int32) for _ in range(3))
    at = 0
    for number, piece in enumerate(pieces, start=1):
        end = at + len(piece)
        tokens[at:end], positions[at:end] = piece, np.arange(len(piece))
        segments[at:end] = number
        at = end
    return tokens, positions, segments
