"""Where a token's vector lies while experts work on it: to its places and back, by gathers alone.

An assignment (token, choice) has a place in an array that experts read; a place knows its token.
With both directions known, the gradient of a gather is a gather too: nothing is scattered.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


class Layout(NamedTuple):
    """N tokens of K choices in R places; an id out of range (N, R) says none."""

    token: Int[Array, " R"]
    place: Int[Array, "N K"]


def by_expert(
    experts: Int[Array, "N K"], count: int, places: int
) -> tuple[Layout, Int[Array, " E"]]:
    """Assignments sorted by expert, then by token, and how many each of `count` experts has.

    Ids from `count` on are no assignment; `places` must hold all others.
    """
    N, K = experts.shape
    ids = experts.reshape(-1)
    order = jnp.argsort(ids, stable=True)
    sizes = jnp.sum(ids[:, None] == jnp.arange(count), axis=0, dtype=jnp.int32)
    token = jnp.where(jnp.arange(places) < jnp.sum(sizes), order[:places] // K, N)
    place = jnp.where(ids < count, jnp.argsort(order), places)
    return Layout(token, place.reshape(N, K)), sizes


def by_slot(experts: Int[Array, "B T K"], count: int, slots: int) -> Layout:
    """Places [E, B, slots]: the s-th token of row b that expert e has is at (e, b, s).

    Ids from `count` on are no assignment; no row may have more than `slots` tokens for an expert.
    """
    B, T, K = experts.shape
    places = count * B * slots
    place = (experts * B + jnp.arange(B)[:, None, None]) * slots + ranks(experts, count)
    place = jnp.where(experts < count, place, places).reshape(B * T, K)
    tokens = jnp.broadcast_to(jnp.arange(B * T)[:, None], place.shape)
    token = jnp.full((places,), B * T).at[place].set(tokens, mode="drop")
    return Layout(token, place)


def ranks(experts: Int[Array, "B T K"], count: int) -> Int[Array, "B T K"]:
    """How many tokens before it in its row an assignment's expert has; -1 without an expert."""
    taken = jnp.any(experts[..., None] == jnp.arange(count), axis=2)
    return picked(jnp.cumsum(taken, axis=1, dtype=jnp.int32), experts) - 1


def picked(table: Shaped[Array, "B T E"], experts: Int[Array, "B T K"]) -> Shaped[Array, "B T K"]:
    """Each token's entries for its experts, 0 for none: a sum, whose gradient scatters nothing."""
    hits = experts[..., None] == jnp.arange(table.shape[2])
    return jnp.sum(jnp.where(hits, table[:, :, None], 0), axis=3)


@jax.custom_vjp
def spread(x: Float[Array, "N D"], layout: Layout) -> Float[Array, "R D"]:
    """The vector of each place's token, 0 where there is none."""
    return _rows(x, layout.token)


def _spread_forward(x: Array, layout: Layout) -> tuple[Array, Layout]:
    return spread(x, layout), layout


def _spread_backward(layout: Layout, d: Array) -> tuple[Array, None]:
    ones = jnp.ones(layout.place.shape, jnp.promote_types(d.dtype, jnp.float32))
    return _weighted(d, ones, layout.place), None


spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def gathered(
    y: Float[Array, "R D"], weights: Float[Array, "N K"], layout: Layout
) -> Float[Array, "N D"]:
    """The weighted sum of each token's places, added up in the dtype of `weights`."""
    return _weighted(y, weights, layout.place)


def _gathered_forward(y: Array, weights: Array, layout: Layout) -> tuple[Array, tuple]:
    return gathered(y, weights, layout), (y, weights, layout)


def _gathered_backward(kept: tuple, d: Array) -> tuple[Array, Array, None]:
    y, weights, (token, place) = kept

    def one(_: None, places: Array) -> tuple[None, Array]:
        return None, jnp.sum(d.astype(weights.dtype) * _rows(y, places), axis=1)

    d_weights = jax.lax.scan(one, None, place.T, unroll=min(place.shape[1], UNROLL))[1].T
    shares = jnp.zeros(token.shape, weights.dtype).at[place].set(weights, mode="drop")
    d_y = (shares[:, None] * _rows(d, token)).astype(y.dtype)
    return d_y, d_weights, None


gathered.defvjp(_gathered_forward, _gathered_backward)

UNROLL = 8  # choices of a token that are handled in one pass


def _weighted(y: Array, weights: Array, place: Array) -> Array:
    def add(total: Array, choice: tuple[Array, Array]) -> tuple[Array, None]:
        places, weight = choice
        return total + weight[:, None] * _rows(y, places), None

    zeros = jnp.zeros((place.shape[0], y.shape[1]), weights.dtype)
    choices = place.T, weights.T
    total, _ = jax.lax.scan(add, zeros, choices, unroll=max(1, min(place.shape[1], UNROLL)))
    return total.astype(y.dtype)


def _rows(x: Array, ids: Array) -> Array:
    """`x[ids]`, 0 for ids past the end."""
    return x.at[ids].get(mode="fill", fill_value=0)
