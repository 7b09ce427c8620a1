"""InfoNCE and what is told of a space of unit vectors beside it: pure functions of vectors.

InfoNCE (van den Oord et al., arXiv:1807.03748), in both directions (CLIP, arXiv:2103.00020), over
all rows of the batch. Alignment and uniformity: Wang & Isola, arXiv:2005.10242.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

HIGHEST = jax.lax.Precision.HIGHEST  # cosines over a temperature of .05 do not bear TF32


class Candidates(NamedTuple):
    """Who is whose negative: the matches of other rows, and the hard ones of all rows."""

    others: Bool[Array, "B B"]  # the diagonal, the row's own match, is always in
    hard: Bool[Array, "B M"]


class Told(NamedTuple):
    nats: Float[Array, " B"]  # mean of both directions
    correct: Bool[Array, " B"]  # the match is nearer to its anchor than every candidate


def candidates(
    ids: Int[Array, "B V 2"], present: Bool[Array, "B V"], weights: Float[Array, " B"]
) -> Candidates:
    """Texts that are equal to the anchor or to its match are no negatives of it, nor is padding."""
    B, V, _ = ids.shape
    anchor, match = ids[:, 0], ids[:, 1]
    equal = same(anchor, anchor) | same(match, match) | same(anchor, match)
    equal |= same(match, anchor)
    others = (~equal & (weights != 0)[None]) | jnp.eye(B, dtype=bool)
    rest, there = ids[:, 2:].reshape(-1, 2), present[:, 2:].reshape(-1)
    hard = ~same(anchor, rest) & ~same(match, rest) & there[None]
    return Candidates(others, hard)


def info_nce(
    vectors: Float[Array, "B V E"], temperature: Float[Array, ""], who: Candidates
) -> Told:
    """-log of the share that the match has among the candidates, from the anchor (hard negatives
    included) and from the match; vectors are of length 1: anchor, match, hard negatives."""
    B, V, E = vectors.shape
    anchor, match, hard = vectors[:, 0], vectors[:, 1], vectors[:, 2:].reshape(-1, E)
    close = jnp.matmul(anchor, match.T, precision=HIGHEST) / temperature
    far = jnp.matmul(anchor, hard.T, precision=HIGHEST) / temperature
    own = jnp.diagonal(close)
    low = jnp.finfo(close.dtype).min
    seen = jnp.concatenate(
        [jnp.where(who.others, close, low), jnp.where(who.hard, far, low)], axis=1
    )
    back = jnp.where(who.others, close.T, low)
    nats = jax.nn.logsumexp(seen, axis=1) + jax.nn.logsumexp(back, axis=1) - 2 * own
    ahead = jnp.sum(seen >= own[:, None], axis=1)  # the match itself is one of them
    return Told(0.5 * nats, ahead == 1)


def alignment(vectors: Float[Array, "B V E"]) -> Float[Array, " B"]:
    """Squared distance of each match from its anchor."""
    return jnp.sum(jnp.square(vectors[:, 0] - vectors[:, 1]), axis=-1)


def hardness(
    vectors: Float[Array, "B V E"], present: Bool[Array, "B V"], weights: Float[Array, " B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum and number of the cosines of anchors with the hard negatives of their own rows."""
    near = jnp.einsum("be,bme->bm", vectors[:, 0], vectors[:, 2:], precision=HIGHEST)
    known = present[:, 2:] & (weights != 0)[:, None]
    return jnp.sum(near, where=known), jnp.sum(known, dtype=near.dtype)


def uniformity(x: Float[Array, "B E"], weights: Float[Array, " B"]) -> Float[Array, ""]:
    """log of the mean of exp(-2 d^2) over pairs of different rows; 0 where there is no pair."""
    known = weights != 0
    pairs = known[:, None] & known[None] & ~jnp.eye(len(x), dtype=bool)
    closeness = jnp.matmul(x, x.T, precision=HIGHEST)
    potential = jnp.exp(-4 * (1 - closeness))  # d^2 = 2 - 2 cos
    count = jnp.sum(pairs, dtype=x.dtype)
    mean = jnp.sum(potential, where=pairs) / jnp.maximum(count, 1)
    return jnp.where(count > 0, jnp.log(jnp.where(count > 0, mean, 1)), 0)


def same(a: Int[Array, "N 2"], b: Int[Array, "M 2"]) -> Bool[Array, "N M"]:
    """Where the texts with these ids are equal."""
    return jnp.all(a[:, None] == b[None], axis=-1)
