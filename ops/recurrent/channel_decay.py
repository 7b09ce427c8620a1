"""Decays of keys, one for a head or one for each channel, inside a chunk of a matrix memory.

    products[i, j] = sum over c of x[i, c] k[j, c] exp(g[j+1, c] + .. + g[i, c])   for j <= i

With one g for a head this is (x k^T) * L of `ChunkDecays`. With one g for a channel the exponential
depends on i, j and c. A product of matrices needs a factor for i and one for j, and the factors
exp(sum to i) and exp(- sum to j) overflow. Here a chunk is halved again and again (the secondary
chunks of Yang et al., arXiv:2312.06635, section 4.3, at every size): where i is in the right and j
in the left half of a block, both sums start at the middle, so that both exponents are <= 0.

The sums have terms of one sign: a difference of cumulative sums would lose small terms that follow
a large one.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ops.recurrent.chunked_recurrence import chunk_decays


class KeyDecays(NamedTuple):
    """Decays between a chunk's tokens and its ends; C is 1, or the width K of the keys."""

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
        chunk = chunk_decays(g[..., 0])
        products = [dot("...ik,...jk->...ij", x, k) * chunk.L for x in rows]
        ends = chunk.state_decay_out, chunk.decay_states, chunk.decay_chunk[..., None]
        return products, KeyDecays(*(z[..., None] for z in ends))
    Q = k.shape[-2]
    products = [jnp.sum(x.astype(g.dtype) * k.astype(g.dtype), axis=-1)[..., None] for x in rows]
    products = [z * jnp.eye(Q, dtype=g.dtype) for z in products]
    for pairs, terms in _halvings(Q):
        decay = jnp.exp(_sums(terms, g))
        k_decayed = k * decay
        for n, x in enumerate(rows):
            decayed = dot("...ik,...jk->...ij", x * decay, k_decayed)
            products[n] = products[n] + jnp.where(pairs, decayed, 0)
    i, j = np.ogrid[:Q, :Q]
    into, out_of = jnp.exp(_sums(j <= i, g)), jnp.exp(_sums(j > i, g))
    return products, KeyDecays(into, out_of, into[..., -1, :, None])


def halvings(Q: int) -> int:
    """Returns how often a chunk of Q tokens is halved, where each channel has a decay."""
    return (Q - 1).bit_length() if Q else 0


def _halvings(Q: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, for each size of block, two masks [Q Q] of tokens i and j.

    The first has the pairs with i in the right and j in the left half of the same block. The second
    has the tokens j whose g are summed for token i: from the middle to i in a right half, from i to
    the middle in a left one.
    """
    i, j = np.ogrid[:Q, :Q]
    for level in range(halvings(Q)):
        half_i, half_j = i >> level, j >> level
        is_right = half_i % 2 == 1
        same_half = half_i == half_j
        pairs = is_right & (half_j == half_i - 1)
        yield pairs, same_half & np.where(is_right, j <= i, j > i)


def _sums(terms: np.ndarray, g: Float[Array, "*axes Q K"]) -> Float[Array, "*axes Q K"]:
    """Adds up the g of the tokens that `terms` [Q Q] names for each token."""
    return jnp.einsum("ij,...jk->...ik", terms.astype(g.dtype), g, precision="highest")
