"""Causal language modeling: predict the next token (Shannon 1951; GPT, Radford et al. 2018).

A document `bos t1 .. tn eos` gives the inputs `bos t1 .. tn` and the targets `t1 .. tn eos`: every
token of the text and its end are predicted once. If the end of a row cuts a document, the rest of
the document continues in the next row, without the earlier tokens as context.

With `fim_rate` some stretches of documents are rows of fill-in-the-middle in training. With
`mtp_depth`, further modules predict the tokens after the next one (`objectives/multi_token`).
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from arch import ModelConfig, SequenceInfo
from arch.layers.dropout import maybe_split_key
from arch.weighted_sum import AuxMetrics, WeightedSum
from errors import ConfigError
from objectives.fill_in_the_middle import fill_in_the_middle
from objectives.multi_token import MtpModule, append_layers, mtp_cost, run_modules, shift_left
from objectives.token_loss import masked_sum, score_tokens
from objectives.token_sets import TokenizerLike, require_single_stack
from objectives.types import LossTerm, Metrics, RowFn, RowSpec, Trainable, aux_loss_terms
from ops.cross_entropy import CrossEntropy
from settings.types import Fraction, NonNegativeFloat, NonNegativeInt, config


class TokenScores(NamedTuple):
    """Token scores are the cross-entropies [B T] of a microbatch with the auxiliary metrics."""

    scores: CrossEntropy
    aux: AuxMetrics
    further_scores: tuple[CrossEntropy, ...] = ()  # Of the modules of multi-token prediction.


@config
class CausalLM:
    """The causal language modeling objective predicts each token from the tokens before it."""

    # Coefficient of mean(logsumexp(logits)^2) in the loss (PaLM, arXiv:2204.02311).
    z_loss: NonNegativeFloat = 0.0
    # Share of the stretches of documents whose middle follows their end (arXiv:2207.14255).
    fim_rate: Fraction = 0.0
    fim_spm_rate: Fraction = 0.5  # Share of them with the suffix before the prefix.
    # Number of modules that predict the tokens after the next one (multi-token prediction).
    mtp_depth: NonNegativeInt = 0
    # Coefficient of the mean loss of these modules (DeepSeek-V3: 0.3, at last 0.1).
    mtp_coefficient: NonNegativeFloat = 0.3

    sums_over_rows: ClassVar[bool] = True
    memory_bank: ClassVar[None] = None

    def row_spec(self, model: ModelConfig, seq_len: int) -> RowSpec:
        """Returns the spec of rows of `seq_len` positions, read with the causal view.

        Documents are packed, or each has a row of its own behind its image.

        Raises:
            ConfigError: if no row has the tokens that the last module predicts.
        """
        require_single_stack("causal_lm", model.encoder.depth)
        if self.mtp_depth >= seq_len:
            raise ConfigError(
                f"causal_lm.mtp_depth is {self.mtp_depth}, but rows of train.seq_len {seq_len} "
                f"have no token so far ahead; nearest: {seq_len - 1}"
            )
        spec = RowSpec(
            text_length=seq_len,
            overlap=1,
            view="causal",
            allows_weights=not self.fim_rate,
            extra_cost=mtp_cost(model, seq_len, self.mtp_depth),
        )
        return spec.with_image_prefix(model)

    def for_eval(self) -> "CausalLM":
        """Returns the objective on texts in their own order, without multi-token prediction."""
        return CausalLM(z_loss=self.z_loss)

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
            # An image has a negative id; where it would be predicted, the loader's weight is 0.
            row["tokens"][start:end] = tokens[:-1]
            row["targets"][start:end] = np.maximum(tokens[1:], 0)
            row["positions"][start:end] = np.arange(end - start)
            segment_ids[start:end] = number
            start = end
        weights = (segment_ids != 0).astype(np.float32)
        return row | {
            "weights": weights,
            "segment_ids": segment_ids,
            "is_prefix": np.zeros(length, bool),
        }

    def make_head(self, model: ModelConfig, key: Array) -> nnx.List | None:
        """Returns the modules of multi-token prediction; None if there are none."""
        if not self.mtp_depth:
            return None
        return nnx.List(MtpModule(model, key=k) for k in jax.random.split(key, self.mtp_depth))

    def term_weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the sum of the weights of all targets, for each loss term."""
        total = jnp.sum(batch["weights"], dtype=jnp.float32)
        terms = {"nats": total} | ({"z_loss": total} if self.z_loss else {})
        further = (_further_weights(batch, k) for k in range(1, self.mtp_depth + 1))
        return terms | {
            f"mtp{k}_nats": jnp.sum(weights, dtype=jnp.float32)
            for k, weights in enumerate(further, 1)
        }

    def forward(
        self, trainable: Trainable, microbatch: dict[str, Array], key: Array | None
    ) -> TokenScores:
        """Runs the model with the causal view and scores every target."""
        seq, targets = SequenceInfo.from_batch(microbatch, "causal"), microbatch["targets"]
        if not self.mtp_depth:
            hidden, aux, _ = trainable.model(microbatch["tokens"], seq, key=key)
            return TokenScores(score_tokens(trainable, hidden, targets), aux)
        keys = maybe_split_key(key, 2)
        hidden, aux, _ = trainable.model(microbatch["tokens"], seq, key=keys[0])
        scores, further_scores = score_tokens(trainable, hidden, targets), []
        modules = trainable.head, trainable.model
        further, reports = run_modules(*modules, hidden, targets, seq, keys[1])
        for k, hidden in enumerate(further, 1):
            targets_k, _ = shift_left(targets, seq.segment_ids, k)
            further_scores.append(score_tokens(trainable, hidden, targets_k))
        return TokenScores(scores, append_layers(aux, reports), tuple(further_scores))

    def reduce(
        self, trainable: Trainable, out: TokenScores, batch: dict[str, Array]
    ) -> tuple[dict[str, LossTerm], Metrics]:
        """Returns the cross-entropy, the z-loss and the channels' terms, and the accuracy."""
        weights, totals = batch["weights"], self.term_weights(batch)
        terms = {"nats": LossTerm(masked_sum(out.scores.loss, weights), totals["nats"])}
        if self.z_loss:
            squares = masked_sum(jnp.square(out.scores.logsumexp), weights)
            terms["z_loss"] = LossTerm(squares, totals["z_loss"], self.z_loss)
        for k, scores in enumerate(out.further_scores, 1):
            nats = masked_sum(scores.loss, _further_weights(batch, k))
            coefficient = self.mtp_coefficient / self.mtp_depth
            terms[f"mtp{k}_nats"] = LossTerm(nats, totals[f"mtp{k}_nats"], coefficient)
        aux_terms, metrics = aux_loss_terms(trainable, out.aux, batch)
        correct = masked_sum(out.scores.correct.astype(jnp.float32), weights)
        return terms | aux_terms, metrics | {"accuracy": WeightedSum(correct, totals["nats"])}


def _further_weights(batch: dict[str, Array], k: int) -> Array:
    """Returns the weights of the targets that are k positions later in the same document."""
    return shift_left(batch["weights"], batch["segment_ids"], k)[0]
