"""Cross-entropy of a model's head, for the objectives that predict tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch.terms import Amount, Aux
from objectives.learner import Learner, Metrics, Term, auxiliary
from ops.cross_entropy import CrossEntropy, cross_entropy


def score(learner: Learner, hidden: Float[Array, "B T D"], targets: Array) -> CrossEntropy:
    """Cross-entropy of a model's head on `targets`, without building the logits."""
    head = learner.model.head_weights()
    return cross_entropy(
        *(learner.model.features(hidden), head.table, targets),
        bias=head.bias,
        vocab=head.vocab,
        scale=head.scale,
        cap=head.cap,
    )


class Scored(NamedTuple):
    """Scores of the tokens of a row that count."""

    scores: CrossEntropy  # [B M]
    weights: Float[Array, "B M"]
    aux: Aux


def score_some(
    learner: Learner, hidden: Float[Array, "B T D"], micro: dict[str, Array], most: int, aux: Aux
) -> Scored:
    """Score only the at most `most` tokens of each row that have a weight of 1."""
    weights, places = jax.lax.top_k(micro["weights"], most)
    hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
    targets = jnp.take_along_axis(micro["targets"], places, axis=1)
    return Scored(score(learner, hidden, targets), weights, aux)


def terms_of(
    name: str, learner: Learner, out: Scored, total: Float[Array, ""], batch: dict[str, Array]
) -> tuple[dict[str, Term], Metrics]:
    """The mean of nats under `name`, what channels add, and accuracy."""
    added, metrics = auxiliary(learner, out.aux, batch)
    correct = masked_sum(out.scores.correct.astype(jnp.float32), out.weights)
    terms = {name: Term(masked_sum(out.scores.nats, out.weights), total)}
    return terms | added, metrics | {"accuracy": Amount(correct, total)}


def masked_sum(x: Float[Array, "B T"], weights: Float[Array, "B T"]) -> Float[Array, ""]:
    """sum(x * weights) in at least float32; where the weight is 0, x may be anything."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.sum(jnp.where(weights == 0, 0, x.astype(wide) * weights))
