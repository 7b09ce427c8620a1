"""Masked language modeling: recover masked tokens from both sides (BERT, arXiv:1810.04805).

A share `mask_rate` of a row's text is chosen. Most of the chosen tokens become the mask, some
become another token, some stay. Logits are computed only for the chosen tokens, so the head costs
`mask_rate` of its full cost.
"""

import functools
import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from arch import ModelConfig, SequenceInfo
from errors import ConfigError
from objectives.token_loss import MaskedTokenScores, loss_terms, score_masked
from objectives.token_sets import TokenizerLike, is_text_id, is_word_start, require_single_stack
from objectives.types import LossTerm, Metrics, RowFn, RowSpec, Trainable
from settings.types import Fraction, PositiveFloat, PositiveInt, config

EVAL_MASK_RATE = 0.15  # The rate for evaluation does not depend on the rate for training.


@config
class MaskedLM:
    """The masked language modeling objective predicts masked tokens from both sides."""

    mask_rate: PositiveFloat = 0.15  # Share of a row's text that is chosen and predicted.
    mask_share: Fraction = 0.8  # Share of the chosen tokens that become the mask token.
    # Share of the chosen tokens that become a random token; the remaining ones stay unchanged.
    random_share: Fraction = 0.1
    whole_words: bool = False  # Choose either all tokens of a word or none.
    # Maximum number of consecutive tokens (words, with whole_words) that are chosen together.
    max_ngram: PositiveInt = 1

    sums_over_rows: ClassVar[bool] = True
    memory_bank: ClassVar[None] = None

    def check(self) -> None:
        """Checks the shares of tokens.

        Raises:
            ConfigError: if a rate or the sum of the shares is above its limit.
        """
        if self.mask_rate >= 1:
            raise ConfigError(f"masked_lm.mask_rate is {self.mask_rate}, must be below 1, as 0.15")
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ConfigError(
                f"masked_lm.mask_share {self.mask_share} + masked_lm.random_share "
                f"{self.random_share} is above 1; nearest: random {max(1 - self.mask_share, 0):g}"
            )

    def row_spec(self, model: ModelConfig, seq_len: int) -> RowSpec:
        """Returns the spec of packed rows of `seq_len` positions, read in both directions."""
        require_single_stack("masked_lm", model.encoder.depth)
        return RowSpec(
            seq_len, 0, "bidirectional", max_targets=self.max_masked(seq_len), allows_weights=True
        )

    def for_eval(self) -> "MaskedLM":
        """Returns the objective with EVAL_MASK_RATE, where every chosen token becomes the mask."""
        return MaskedLM(mask_rate=EVAL_MASK_RATE, mask_share=1.0, random_share=0.0)

    def make_row_fn(self, model: ModelConfig, seq_len: int, tokenizer: TokenizerLike) -> RowFn:
        """Returns the function that packs a row and masks its tokens."""
        tokenizer.specials.require("mask", needed_by="objective masked_lm")
        is_text = is_text_id(tokenizer)
        is_start = is_word_start(tokenizer) if self.whole_words else None
        mask_tokens = functools.partial(
            self._mask_tokens, is_text=is_text, is_start=is_start, mask=tokenizer.specials.mask
        )

        def make_row(
            slices: list[np.ndarray], length: int, rng: np.random.Generator
        ) -> dict[str, np.ndarray]:
            tokens, positions, segment_ids = pack_row(slices, length)
            chosen, inputs = mask_tokens(tokens, segment_ids, rng)
            return {
                "tokens": inputs,
                "targets": tokens,
                "weights": chosen.astype(np.float32),
                "positions": positions,
                "segment_ids": segment_ids,
                "is_prefix": np.zeros(length, bool),
            }

        return make_row

    def make_head(self, model: ModelConfig, key: Array) -> None:
        """Returns None, since the objective has no parameters of its own."""
        return None

    def term_weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the number of chosen tokens."""
        return {"masked_nats": jnp.sum(batch["weights"], dtype=jnp.float32)}

    def forward(
        self, trainable: Trainable, microbatch: dict[str, Array], key: Array | None
    ) -> MaskedTokenScores:
        """Runs the model in both directions and scores the chosen tokens."""
        seq = SequenceInfo.from_batch(microbatch, "bidirectional")
        hidden, aux, _ = trainable.model(microbatch["tokens"], seq, key=key)
        max_targets = self.max_masked(seq.segment_ids.shape[1])
        return score_masked(trainable, hidden, microbatch, max_targets, aux)

    def reduce(
        self, trainable: Trainable, out: MaskedTokenScores, batch: dict[str, Array]
    ) -> tuple[dict[str, LossTerm], Metrics]:
        """Returns the cross-entropy and the channels' terms, and the accuracy."""
        total = self.term_weights(batch)["masked_nats"]
        return loss_terms("masked_nats", trainable, out, total, batch)

    def max_masked(self, length: int) -> int:
        """Returns the maximum number of chosen tokens in a row of `length` tokens."""
        return min(length, math.ceil(self.mask_rate * length))

    def _mask_tokens(
        self,
        tokens: np.ndarray,
        segment_ids: np.ndarray,
        rng: np.random.Generator,
        *,
        is_text: np.ndarray,
        is_start: np.ndarray | None,
        mask: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns which tokens are chosen, and the tokens that the model reads."""
        eligible = is_text[tokens] & (segment_ids != 0)
        n_eligible = int(eligible.sum())
        count = round(self.mask_rate * n_eligible) or int(n_eligible > 0)
        count = min(self.max_masked(len(tokens)), count)
        if self.max_ngram == 1 and is_start is None:
            chosen = np.zeros(len(tokens), bool)
            chosen[rng.permutation(np.flatnonzero(eligible))[:count]] = True
        else:
            chosen = self._choose_spans(tokens, segment_ids, eligible, count, is_start, rng)
        uniform, inputs = rng.random(len(tokens)), tokens.copy()
        random_tokens = rng.choice(np.flatnonzero(is_text), len(tokens)).astype(tokens.dtype)
        masked = chosen & (uniform < self.mask_share)
        inputs[masked] = mask
        replaced = chosen & ~masked & (uniform < self.mask_share + self.random_share)
        inputs[replaced] = random_tokens[replaced]
        return chosen, inputs

    def _choose_spans(
        self,
        tokens: np.ndarray,
        segment_ids: np.ndarray,
        eligible: np.ndarray,
        count: int,
        is_start: np.ndarray | None,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Chooses words or n-grams in random order, each if it fits the remaining `count`."""
        breaks = segment_ids != np.roll(segment_ids, 1)
        breaks |= ~eligible | ~np.roll(eligible, 1)
        breaks |= True if is_start is None else is_start[tokens]
        breaks[:1] = True
        unit = np.cumsum(breaks) - 1
        edges = np.append(np.flatnonzero(breaks), len(tokens))
        chosen, remaining = np.zeros(len(tokens), bool), count
        for first in rng.permutation(np.unique(unit[eligible])):
            low = edges[first]
            size = int(rng.integers(1, self.max_ngram + 1))
            high = edges[min(first + size, len(edges) - 1)]
            span = np.arange(low, high)
            span = span[eligible[span] & (segment_ids[span] == segment_ids[low]) & ~chosen[span]]
            if 0 < len(span) <= remaining:
                chosen[span] = True
                remaining -= len(span)
        return chosen


def pack_row(slices: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns tokens, positions and segment ids of a row of complete slices, each [length]."""
    tokens, positions, segment_ids = (np.zeros(length, np.int32) for _ in range(3))
    start = 0
    for number, slice_tokens in enumerate(slices, start=1):
        end = start + len(slice_tokens)
        tokens[start:end], positions[start:end] = slice_tokens, np.arange(len(slice_tokens))
        segment_ids[start:end] = number
        start = end
    return tokens, positions, segment_ids
