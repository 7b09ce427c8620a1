"""Decays and block layout that the chunked recurrences share (`ssd`, `gla`, `delta_rule`).

A head's state decays by exp(g[t]) before token t, with g <= 0, and each token adds a term to it:

    h[t] = exp(g[t]) h[t-1] + new[t]  =  sum over j <= t of exp(g[j+1] + .. + g[t]) new[j]

Tokens are cut into chunks. Inside a chunk all pairs of tokens are computed at once, as products of
matrices, and only the states between chunks are computed step by step (Mamba-2, Dao & Gu,
arXiv:2405.21060, section 6 and listing 1, whose names are used: its A is g, and `segsum` are the
sums of g in the exponent). `ChunkDecays` holds the four exponentials that this form needs.

B rows, T tokens, H heads, M chunks of Q tokens in a block. Blocks follow one another in a loop, so
that only one block's matrices exist at a time.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float

from ops.implementation import platform

CHUNK_SIZE = {"cpu": 32}  # default tokens of a chunk by platform; 64 on the others
# Elements of the [B M H Q Q] matrices of a block: on a CPU as many as fit its cache, on the other
# platforms (2**24, which are 64 MiB in float32) as many as keep the device busy.
BLOCK_ELEMENTS = {"cpu": 2**15}
LOG_ZERO = -1e30  # logarithm of a decay to 0; finite, so that sums of it are not NaN
Tree = TypeVar("Tree")  # a pytree of arrays


class ChunkDecays(NamedTuple):
    """The decays of one chunk, named as in Mamba-2; 0 where a document begins in between."""

    # exp(segsum(g)): from the end of token j (last axis) to the end of token i >= j, else 0
    L: Float[Array, "*axes Q Q"]
    state_decay_out: Float[Array, "*axes Q"]  # from before the chunk to the end of token i
    decay_states: Float[Array, "*axes Q"]  # from the end of token j to the end of the chunk
    decay_chunk: Float[Array, "*axes"]  # across the whole chunk


def to_blocks(tree: Tree, num_heads: int, chunk_size: int | None) -> Tree:
    """Reshapes every array [B T ..] to [blocks B M Q ..], padding the last chunk with zeros.

    Q is at most `chunk_size` (None: the platform's CHUNK_SIZE), and M at most what BLOCK_ELEMENTS
    allows for `num_heads` heads.
    """
    B, T = jax.tree.leaves(tree)[0].shape[:2]
    chunks = -(-T // (chunk_size or CHUNK_SIZE.get(platform(), 64)))
    Q = -(-T // chunks)
    max_chunks = max(1, BLOCK_ELEMENTS.get(platform(), 2**24) // (B * num_heads * Q**2))
    blocks = -(-chunks // max_chunks)
    M = -(-chunks // blocks)

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, blocks * M * Q - T), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(B, blocks, M, Q, *x.shape[2:]), 1, 0)

    return jax.tree.map(split, tree)


def from_blocks(x: Float[Array, "blocks B M Q *inner"], length: int) -> Float[Array, "B T *inner"]:
    """Reverses `to_blocks` for one array and cuts its padding off: T is `length`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[4:])[:, :length]


def log_decay_with_resets(
    g: Float[Array, "B T *inner"], reset: Bool[Array, "B T"]
) -> Float[Array, "B T *inner"]:
    """Returns the log-decays `g`, with LOG_ZERO at the first token of each document."""
    return jnp.where(jnp.expand_dims(reset, tuple(range(2, g.ndim))), LOG_ZERO, g)


def chunk_decays(g: Float[Array, "*axes Q"]) -> ChunkDecays:
    """Computes a chunk's decays from the log-decays `g` of its tokens.

    The sums of `segsum` have terms of one sign and are added up by a matrix product: a difference
    of cumulative sums would lose small terms that follow a large one.
    """
    i, j = np.ogrid[: g.shape[-1], : g.shape[-1]]
    lower = (i >= j).astype(g.dtype)
    # A product with ones repeats g[i] along j, because its gradient is then `matmul_sum`.
    rows = jnp.einsum("...i,j->...ij", g, jnp.ones(g.shape[-1:], g.dtype), precision="highest")
    segsum = jnp.einsum("ik,...kj->...ij", lower, jnp.where(i > j, rows, 0), precision="highest")
    L = jnp.exp(segsum) * (i >= j)
    A_cumsum = jnp.cumsum(g, axis=-1)
    state_decay_out = jnp.exp(A_cumsum)
    return ChunkDecays(L, state_decay_out, L[..., -1, :], state_decay_out[..., -1])


def matmul_sum(x: Float[Array, "*axes i j"], axis: int = -1) -> Float[Array, "*axes n"]:
    """Sums over one of the last two axes (`axis` -1 or -2) by a product with ones.

    A plain reduction takes XLA:CPU four times as long, because it fuses the reduction into one loop
    with the computation of `x`.
    """
    ones = jnp.ones(x.shape[axis], x.dtype)
    spec = "...ij,i->...j" if axis == -2 else "...ij,j->...i"
    return jnp.einsum(spec, x, ones, precision="highest")


def pairwise_sum(x: Float[Array, "*axes n i j"]) -> Float[Array, "*axes i j"]:
    """Sums over the third axis from the end by adding halves.

    A plain reduction is slow on XLA:CPU for the reason given in `matmul_sum`.
    """
    n = x.shape[-3]
    if n == 1:
        return x[..., 0, :, :]
    last = x[..., 2 * (n // 2) :, :, :]
    halves = x[..., : n // 2, :, :] + x[..., n // 2 : 2 * (n // 2), :, :]
    return pairwise_sum(jnp.concatenate([halves, last], axis=-3) if n % 2 else halves)


def make_einsum(
    dtype: DTypeLike, accumulate_dtype: DTypeLike
) -> Callable[[str, Array, Array], Array]:
    """Returns an einsum of two arrays with operands in `dtype` and sums in `accumulate_dtype`."""

    def dot(spec: str, x: Array, y: Array) -> Array:
        return jnp.einsum(
            spec, x.astype(dtype), y.astype(dtype), preferred_element_type=accumulate_dtype
        )

    return dot
