"""Predict the next token (Shannon 1951; GPT, Radford et al. 2018).

A document `bos t1 .. tn eos` gives the inputs `bos t1 .. tn` and the targets `t1 .. tn eos`: every
token of the text and its end are predicted once. A document that a row cuts goes on in the next one
without its past.
"""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from arch import ModelConfig, Sequence
from arch.terms import Amount, Aux
from objectives.learner import Example, Learner, Metrics, Rows, Term, auxiliary
from objectives.scoring import masked_sum, score
from objectives.vocabulary import Tokenizer, no_source
from ops.cross_entropy import CrossEntropy
from schema import NonNegative, config


class Predicted(NamedTuple):
    scores: CrossEntropy
    aux: Aux


@config
class CausalLM:
    z_loss: NonNegative = 0.0  # weight of mean(logsumexp(logits)^2) (PaLM, arXiv:2204.02311)

    additive: ClassVar[bool] = True
    bank: ClassVar[None] = None

    def rows(self, model: ModelConfig, length: int) -> Rows:
        no_source("causal_lm", model.encoder.depth)
        return Rows(text=length, overlap=1, view="causal", in_place=True)

    def judged(self) -> "CausalLM":
        """As it is evaluated."""
        return self

    def host(self, model: ModelConfig, length: int, tokenizer: Tokenizer) -> Example:
        return self.example

    def example(
        self, pieces: list[np.ndarray], length: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """A row: `tokens, targets, weights, positions, segments, prefix`, each [T]."""
        row = {name: np.zeros(length, np.int32) for name in ("tokens", "targets", "positions")}
        segments = np.zeros(length, np.int32)
        at = 0
        for number, piece in enumerate(pieces, start=1):
            end = at + len(piece) - 1
            row["tokens"][at:end], row["targets"][at:end] = piece[:-1], piece[1:]
            row["positions"][at:end] = np.arange(end - at)
            segments[at:end] = number
            at = end
        weights = (segments != 0).astype(np.float32)
        return row | {"weights": weights, "segments": segments, "prefix": np.zeros(length, bool)}

    def head(self, model: ModelConfig, key: Array) -> None:
        return None

    def weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        total = jnp.sum(batch["weights"], dtype=jnp.float32)
        return {"nats": total} | ({"z": total} if self.z_loss else {})

    def encode(self, learner: Learner, micro: dict[str, Array], key: Array | None) -> Predicted:
        seq = Sequence.of(micro, "causal")
        hidden, aux, _ = learner.model(micro["tokens"], seq, key=key)
        return Predicted(score(learner, hidden, micro["targets"]), aux)

    def reduce(
        self, learner: Learner, out: Predicted, batch: dict[str, Array]
    ) -> tuple[dict[str, Term], Metrics]:
        weights, total = batch["weights"], self.weights(batch)
        terms = {"nats": Term(masked_sum(out.scores.nats, weights), total["nats"])}
        if self.z_loss:
            terms["z"] = Term(
                masked_sum(jnp.square(out.scores.lse), weights), total["z"], self.z_loss
            )
        added, metrics = auxiliary(learner, out.aux, batch)
        correct = masked_sum(out.scores.correct.astype(jnp.float32), weights)
        return terms | added, metrics | {"accuracy": Amount(correct, total["nats"])}
