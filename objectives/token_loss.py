"""Cross-entropy of a model's head, for the objectives that predict tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from arch.weighted_sum import AuxMetrics, WeightedSum
from objectives.types import LossTerm, Metrics, Trainable, aux_loss_terms
from ops.cross_entropy import CrossEntropy, cross_entropy


def score_tokens(
    trainable: Trainable, hidden: Float[Array, "B T D"], targets: Array
) -> CrossEntropy:
    """Computes the cross-entropy [B T] of the model's head on `targets` without storing logits."""
    head = trainable.model.head_weights()
    return cross_entropy(
        *(trainable.model.features(hidden), head.table, targets),
        bias=head.bias,
        vocab_size=head.vocab_size,
        scale=head.scale,
        softcap=head.softcap,
    )


class MaskedTokenScores(NamedTuple):
    """Masked token scores are the cross-entropies of the scored tokens of each row."""

    scores: CrossEntropy  # [B targets]
    weights: Float[Array, "B targets"]
    aux: AuxMetrics


def score_masked(
    trainable: Trainable,
    hidden: Float[Array, "B T D"],
    microbatch: dict[str, Array],
    max_targets: int,
    aux: AuxMetrics,
) -> MaskedTokenScores:
    """Scores only the tokens of weight 1, of which each row has at most `max_targets`."""
    weights, indices = jax.lax.top_k(microbatch["weights"], max_targets)
    hidden = jnp.take_along_axis(hidden, indices[..., None], axis=1)
    targets = jnp.take_along_axis(microbatch["targets"], indices, axis=1)
    return MaskedTokenScores(score_tokens(trainable, hidden, targets), weights, aux)


def loss_terms(
    name: str,
    trainable: Trainable,
    out: MaskedTokenScores,
    total_weight: Float[Array, ""],
    batch: dict[str, Array],
) -> tuple[dict[str, LossTerm], Metrics]:
    """Returns the cross-entropy (nats) as term `name`, the channels' terms, and the accuracy."""
    aux_terms, metrics = aux_loss_terms(trainable, out.aux, batch)
    correct = masked_sum(out.scores.correct.astype(jnp.float32), out.weights)
    terms = {name: LossTerm(masked_sum(out.scores.loss, out.weights), total_weight)}
    return terms | aux_terms, metrics | {"accuracy": WeightedSum(correct, total_weight)}


def masked_sum(x: Shaped[Array, "..."], weights: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns sum(x * weights) in at least float32; where the weight is 0, x may be any value."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.sum(jnp.where(weights == 0, 0, x.astype(dtype) * weights))
