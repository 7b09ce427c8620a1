"""Causal language modeling: predict the next token (Shannon 1951; GPT, Radford et al. 2018).

A document `bos t1 .. tn eos` gives the inputs `bos t1 .. tn` and the targets `t1 .. tn eos`: every
token of the text and its end are predicted once. If the end of a row cuts a document, the rest of
the document continues in the next row, without the earlier tokens as context.

With `fim_rate` some stretches of documents are rows of fill-in-the-middle in training.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from arch import ModelConfig, SequenceInfo
from arch.weighted_sum import AuxMetrics, WeightedSum
from objectives.fill_in_the_middle import fill_in_the_middle
from objectives.token_loss import masked_sum, score_tokens
from objectives.token_sets import TokenizerLike, require_single_stack
from objectives.types import LossTerm, Metrics, RowFn, RowSpec, Trainable, aux_loss_terms
from ops.cross_entropy import CrossEntropy
from settings.types import Fraction, NonNegativeFloat, config


class TokenScores(NamedTuple):
    """Token scores are the cross-entropies [B T] of a microbatch with the auxiliary metrics."""

    scores: CrossEntropy
    aux: AuxMetrics


@config
class CausalLM:
    """The causal language modeling objective predicts each token from the tokens before it."""

    # Coefficient of mean(logsumexp(logits)^2) in the loss (PaLM, arXiv:2204.02311).
    z_loss: NonNegativeFloat = 0.0
    # Share of the stretches of documents whose middle follows their end (arXiv:2207.14255).
    fim_rate: Fraction = 0.0
    fim_spm_rate: Fraction = 0.5  # Share of them with the suffix before the prefix.

    sums_over_rows: ClassVar[bool] = True
    memory_bank: ClassVar[None] = None

    def row_spec(self, model: ModelConfig, seq_len: int) -> RowSpec:
        """Returns the spec of packed rows of `seq_len` positions, read with the causal view."""
        require_single_stack("causal_lm", model.encoder.depth)
        return RowSpec(
            text_length=seq_len, overlap=1, view="causal", allows_weights=not self.fim_rate
        )

    def for_eval(self) -> "CausalLM":
        """Returns the objective on texts in their own order."""
        return dataclasses.replace(self, fim_rate=0.0)

    def make_row_fn(self, model: ModelConfig, seq_len: int, tokenizer: TokenizerLike) -> RowFn:
        """Returns `make_row`, on rearranged slices if `fim_rate` is not 0."""
        if not self.fim_rate:
            return self.make_row
        tokenizer.specials.require("sentinels", "eos", needed_by="causal_lm.fim_rate")

        def make_fim_row(
            slices: list[np.ndarray], length: int, rng: np.random.Generator
        ) -> dict[str, np.ndarray]:
            rates = self.fim_rate, self.fim_spm_rate
            changed = [fill_in_the_middle(x, tokenizer, *rates, rng) for x in slices]
            return self.make_row(changed, length, rng)

        return make_fim_row

    def make_row(
        self, slices: list[np.ndarray], length: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Returns `tokens, targets, weights, positions, segment_ids, is_prefix`, each [T]."""
        row = {name: np.zeros(length, np.int32) for name in ("tokens", "targets", "positions")}
        segment_ids = np.zeros(length, np.int32)
        start = 0
        for number, tokens in enumerate(slices, start=1):
            end = start + len(tokens) - 1
            row["tokens"][start:end], row["targets"][start:end] = tokens[:-1], tokens[1:]
            row["positions"][start:end] = np.arange(end - start)
            segment_ids[start:end] = number
            start = end
        weights = (segment_ids != 0).astype(np.float32)
        return row | {
            "weights": weights,
            "segment_ids": segment_ids,
            "is_prefix": np.zeros(length, bool),
        }

    def make_head(self, model: ModelConfig, key: Array) -> None:
        """Returns None, since the objective has no parameters of its own."""
        return None

    def term_weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the sum of the weights of all targets, for each loss term."""
        total = jnp.sum(batch["weights"], dtype=jnp.float32)
        return {"nats": total} | ({"z_loss": total} if self.z_loss else {})

    def forward(
        self, trainable: Trainable, microbatch: dict[str, Array], key: Array | None
    ) -> TokenScores:
        """Runs the model with the causal view and scores every target."""
        seq = SequenceInfo.from_batch(microbatch, "causal")
        hidden, aux, _ = trainable.model(microbatch["tokens"], seq, key=key)
        return TokenScores(score_tokens(trainable, hidden, microbatch["targets"]), aux)

    def reduce(
        self, trainable: Trainable, out: TokenScores, batch: dict[str, Array]
    ) -> tuple[dict[str, LossTerm], Metrics]:
        """Returns the cross-entropy, the z-loss and the channels' terms, and the accuracy."""
        weights, totals = batch["weights"], self.term_weights(batch)
        terms = {"nats": LossTerm(masked_sum(out.scores.loss, weights), totals["nats"])}
        if self.z_loss:
            squares = masked_sum(jnp.square(out.scores.logsumexp), weights)
            terms["z_loss"] = LossTerm(squares, totals["z_loss"], self.z_loss)
        aux_terms, metrics = aux_loss_terms(trainable, out.aux, batch)
        correct = masked_sum(out.scores.correct.astype(jnp.float32), weights)
        return terms | aux_terms, metrics | {"accuracy": WeightedSum(correct, totals["nats"])}
