"""Decays of keys, one for a head or one for each channel, inside a chunk of a matrix memory.

    products[i, j] = sum over c of x[i, c] k[j, c] exp(g[j+1, c] + .. + g[i, c])   for j <= i, else 0

With one g for a head this is (x k^T) * L of `ChunkDecays`. With one g for a channel the exponential
depends on i, j and c. A product of matrices needs a factor for i and one for j, and the factors
exp(sum to i) and exp(- sum to j) overflow. Here a chunk is halved again and again (the secondary
chunks of Yang et al., arXiv:2312.06635, section 4.3, at every size): where i is in the right and j
in the left half of a block, both sums start at the middle, so that both exponents are <= 0.

The sums have terms of one sign and are built from those of the halves: a difference of cumulative
sums would lose small terms that follow a large one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.recurrent.chunked_recurrence import chunk_decays


SMALL = 1


class KeyDecays(NamedTuple):
    """Decays between a chunk's tokens and its borders; C is 1, or the width K of the keys."""

    into: Float[Array, "*axes Q C"]  # from before the chunk to the end of token i
    out_of: Float[Array, "*axes Q C"]  # from the end of token j to the end of the chunk
    across: Float[Array, "*axes C 1"]  # across the whole chunk, for a state [K Kv]


def decayed_products(
    rows: tuple[Float[Array, "*axes Q K"], ...],
    k: Float[Array, "*axes Q K"],
    g: Float[Array, "*axes Q C"],
    dot: Callable[[str, Array, Array], Array],
) -> tuple[list[Float[Array, "*axes Q Q"]], KeyDecays]:
    """Returns the decayed products of each array of `rows` with `k`, and the decays of the chunk.

    Args:
        rows: queries, or other arrays that are multiplied with earlier keys.
        k: keys.
        g: logarithms of the decays, <= 0: one for all channels (C = 1) or one for each (C = K).
        dot: the einsum to use (see `make_einsum`).
    """
    if g.shape[-1] == 1:
        decays = chunk_decays(g[..., 0])
        products = [dot("...ik,...jk->...ij", x, k) * decays.L for x in rows]
        borders = decays.state_decay_out, decays.decay_states, decays.decay_chunk[..., None]
        return products, KeyDecays(*(z[..., None] for z in borders))
    Q = k.shape[-2]
    P = 1 << (Q - 1).bit_length()
    padding = [(0, 0)] * (k.ndim - 2) + [(0, P - Q), (0, 0)]
    x, k, g = (jnp.pad(z, [(0, 0)] * (z.ndim - k.ndim) + padding) for z in (jnp.stack(rows), k, g))
    blocks, into, out_of = _single_tokens(x, k, g)
    while blocks.shape[-1] < P:
        blocks, into, out_of = _join_halves(blocks, into, out_of, x, k, dot)
    into, out_of = into[..., 0, :Q, :], out_of[..., 0, :Q, :]
    decays = KeyDecays(jnp.exp(into), jnp.exp(out_of), jnp.exp(into[..., -1, :, None]))
    return list(blocks[..., 0, :Q, :Q]), decays


def _single_tokens(x: Array, k: Array, g: Array) -> tuple[Array, Array, Array]:
    """Returns the products of blocks of one token, and the sums of g to and from their borders."""
    blocks = jnp.sum(x.astype(g.dtype) * k.astype(g.dtype), axis=-1)[..., None, None]
    return blocks, g[..., None, :], jnp.zeros_like(g)[..., None, :]


def _join_halves(
    blocks: Float[Array, "R *axes n s s"],
    into: Float[Array, "*axes n s K"],
    out_of: Float[Array, "*axes n s K"],
    x: Float[Array, "R *axes P K"],
    k: Float[Array, "*axes P K"],
    dot: Callable[[str, Array, Array], Array],
) -> tuple[Array, Array, Array]:
    """Joins pairs of blocks of s tokens to blocks of 2 s.

    `into` are the sums of g from the start of a block to the end of token i, and `out_of` those
    from the end of token j to the end of the block.
    """
    s, K = into.shape[-2:]
    left_into, right_into = _pair(into)
    left_out, right_out = _pair(out_of)
    x_right = x.reshape(*x.shape[:-2], -1, 2, s, K)[..., 1, :, :]
    k_left = k.reshape(*k.shape[:-2], -1, 2, s, K)[..., 0, :, :]
    x_right, k_left = x_right * jnp.exp(right_into), k_left * jnp.exp(left_out)
    if s <= SMALL:
        corner = jnp.sum(x_right[..., :, None, :] * k_left[..., None, :, :], axis=-1)
    else:
        corner = dot("r...ik,...jk->r...ij", x_right, k_left)
    left, right = _pair(blocks)
    top = jnp.concatenate([left, jnp.zeros_like(left)], axis=-1)
    joined = jnp.concatenate([top, jnp.concatenate([corner, right], axis=-1)], axis=-2)
    into = jnp.concatenate([left_into, right_into + left_into[..., -1:, :]], axis=-2)
    out_of = jnp.concatenate([left_out + right_into[..., -1:, :], right_out], axis=-2)
    return joined, into, out_of


def _pair(z: Float[Array, "*axes n s K"]) -> tuple[Array, Array]:
    """Splits blocks into the left and the right one of each pair."""
    z = z.reshape(*z.shape[:-3], -1, 2, *z.shape[-2:])
    return z[..., 0, :, :], z[..., 1, :, :]
