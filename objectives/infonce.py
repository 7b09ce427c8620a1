"""InfoNCE and metrics of a batch of unit vectors, as pure functions.

InfoNCE (van den Oord et al., arXiv:1807.03748) is computed in both directions (CLIP,
arXiv:2103.00020), over all rows of the batch. Alignment and uniformity are from Wang & Isola,
arXiv:2005.10242.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# TF32 is too coarse for cosines that are divided by a temperature of 0.05.
HIGHEST = jax.lax.Precision.HIGHEST


class NegativeMask(NamedTuple):
    """A mask of the candidates of each anchor: matches of the batch, and all hard negatives."""

    in_batch: Bool[Array, "B B"]  # The diagonal, each row's own match, is always True.
    hard: Bool[Array, "B hard"]


class InfoNceOutput(NamedTuple):
    """The output of `info_nce` for each row."""

    loss: Float[Array, " B"]  # Mean of both directions, in nats.
    correct: Bool[Array, " B"]  # Whether the match is nearer to its anchor than all negatives.


def negative_mask(
    ids: Int[Array, "B Y 2"], present: Bool[Array, "B Y"], weights: Float[Array, " B"]
) -> NegativeMask:
    """Returns the mask that excludes padding and texts equal to the anchor or to its match."""
    B = len(ids)
    anchor, match = ids[:, 0], ids[:, 1]
    equal = equal_ids(anchor, anchor) | equal_ids(match, match) | equal_ids(anchor, match)
    equal |= equal_ids(match, anchor)
    in_batch = (~equal & (weights != 0)[None]) | jnp.eye(B, dtype=bool)
    hard_ids, hard_present = ids[:, 2:].reshape(-1, 2), present[:, 2:].reshape(-1)
    hard = ~equal_ids(anchor, hard_ids) & ~equal_ids(match, hard_ids) & hard_present[None]
    return NegativeMask(in_batch, hard)


def info_nce(
    vectors: Float[Array, "B Y Z"], temperature: Float[Array, ""], negatives: NegativeMask
) -> InfoNceOutput:
    """Computes the InfoNCE loss of unit vectors: anchor, match, hard negatives.

    The loss is -log of the softmax probability of the match among the candidates. It is the mean of
    the direction from the anchor (with the hard negatives) and the direction from the match.
    """
    Z = vectors.shape[-1]
    anchor, match, hard = vectors[:, 0], vectors[:, 1], vectors[:, 2:].reshape(-1, Z)
    match_logits = jnp.matmul(anchor, match.T, precision=HIGHEST) / temperature
    hard_logits = jnp.matmul(anchor, hard.T, precision=HIGHEST) / temperature
    positive = jnp.diagonal(match_logits)
    low = jnp.finfo(match_logits.dtype).min
    forward = jnp.concatenate(
        [
            jnp.where(negatives.in_batch, match_logits, low),
            jnp.where(negatives.hard, hard_logits, low),
        ],
        axis=1,
    )
    backward = jnp.where(negatives.in_batch, match_logits.T, low)
    losses = jax.nn.logsumexp(forward, axis=1) + jax.nn.logsumexp(backward, axis=1) - 2 * positive
    rank = jnp.sum(forward >= positive[:, None], axis=1)  # The match itself is counted too.
    return InfoNceOutput(0.5 * losses, rank == 1)


def alignment(vectors: Float[Array, "B Y Z"]) -> Float[Array, " B"]:
    """Returns the squared distance of each match from its anchor."""
    return jnp.sum(jnp.square(vectors[:, 0] - vectors[:, 1]), axis=-1)


def hard_negative_cosine(
    vectors: Float[Array, "B Y Z"], present: Bool[Array, "B Y"], weights: Float[Array, " B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns sum and number of the cosines of anchors with the hard negatives of their rows."""
    cosines = jnp.einsum("bz,byz->by", vectors[:, 0], vectors[:, 2:], precision=HIGHEST)
    mask = present[:, 2:] & (weights != 0)[:, None]
    return jnp.sum(cosines, where=mask), jnp.sum(mask, dtype=cosines.dtype)


def uniformity(x: Float[Array, "B Z"], weights: Float[Array, " B"]) -> Float[Array, ""]:
    """Returns log of the mean of exp(-2 d^2) over pairs of different rows; 0 without a pair."""
    mask = weights != 0
    pairs = mask[:, None] & mask[None] & ~jnp.eye(len(x), dtype=bool)
    cosines = jnp.matmul(x, x.T, precision=HIGHEST)
    potential = jnp.exp(-4 * (1 - cosines))  # d^2 = 2 - 2 cos
    count = jnp.sum(pairs, dtype=x.dtype)
    mean = jnp.sum(potential, where=pairs) / jnp.maximum(count, 1)
    return jnp.where(count > 0, jnp.log(jnp.where(count > 0, mean, 1)), 0)


def equal_ids(a: Int[Array, "n 2"], b: Int[Array, "m 2"]) -> Bool[Array, "n m"]:
    """Returns for each pair of ids whether their texts are equal."""
    return jnp.all(a[:, None] == b[None], axis=-1)
