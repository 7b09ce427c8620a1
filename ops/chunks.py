"""Recurrences of heads in chunks: products of matrices inside one, steps from one to the next.

B rows, T tokens, N blocks of M chunks of Q tokens, H heads. What a state loses is given as logs
g <= 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float

from ops.placement import platform

CHUNK = {"cpu": 32}  # tokens, where the caller leaves it open; else 64
# Numbers of [B M H Q Q] in a block of M chunks, computed at once but for their states: on a CPU
# what fits its cache, else what fills the device (2**24 are 64 MiB in float32).
BLOCK = {"cpu": 2**15}  # else 2**24
GONE = -1e30  # the log of nothing that can still be added up


class Decays(NamedTuple):
    """What is left of a state in a chunk; 0 where a document begins in between."""

    within: Float[Array, "*rest Q Q"]  # from the end of token j to the end of token i >= j, else 0
    into: Float[Array, "*rest Q"]  # from before the chunk to the end of token i
    out: Float[Array, "*rest Q"]  # from the end of token j to the end of the chunk
    through: Float[Array, "*rest"]


def blocks(x: Any, heads: int, chunk: int | None) -> Any:
    """[B T ..] to [N B M Q ..] in every array: N blocks of M chunks of Q tokens, at most `chunk`;
    zeros complete the last one."""
    B, T = jax.tree.leaves(x)[0].shape[:2]
    chunks = -(-T // (chunk or CHUNK.get(platform(), 64)))
    Q = -(-T // chunks)
    N = -(-chunks // max(1, BLOCK.get(platform(), 2**24) // (B * heads * Q**2)))
    M = -(-chunks // N)

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, N * M * Q - T), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(B, N, M, Q, *x.shape[2:]), 1, 0)

    return jax.tree.map(split, x)


def join(x: Float[Array, "N B M Q *rest"], length: int) -> Float[Array, "B T *rest"]:
    """The inverse of `blocks`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[4:])[:, :length]


def forgetting(g: Float[Array, "B T H"], reset: Bool[Array, "B T"]) -> Float[Array, "B T H"]:
    """`g`, with nothing left where a document begins."""
    return jnp.where(reset[..., None], GONE, g)


def decays(g: Float[Array, "*rest Q"]) -> Decays:
    """Logs of one sign are added up, by a matrix product: differences of cumulative sums would lose
    what is small beside what came before it."""
    i, j = np.ogrid[: g.shape[-1], : g.shape[-1]]
    later = (i >= j).astype(g.dtype)
    # Of token i, as j sees it; a product with ones, because its gradient is `total` then.
    after = jnp.einsum("...i,j->...ij", g, jnp.ones(g.shape[-1:], g.dtype), precision="highest")
    between = jnp.einsum("ik,...kj->...ij", later, jnp.where(i > j, after, 0), precision="highest")
    within = jnp.exp(between) * (i >= j)
    into = jnp.exp(jnp.cumsum(g, axis=-1))
    return Decays(within, into, within[..., -1, :], into[..., -1])


def total(x: Float[Array, "*rest Q P"], axis: int = -1) -> Float[Array, "*rest Q"]:
    """Sum over one of the last two axes as a product with ones: XLA:CPU takes four times as long
    for a reduction, which it makes one loop with whatever x is computed from."""
    ones = jnp.ones(x.shape[axis], x.dtype)
    spec = "...ij,i->...j" if axis == -2 else "...ij,j->...i"
    return jnp.einsum(spec, x, ones, precision="highest")


def halved(x: Float[Array, "*rest R Q P"]) -> Float[Array, "*rest Q P"]:
    """Sum over the third axis from the end, by adding halves, for the same reason."""
    R = x.shape[-3]
    if R == 1:
        return x[..., 0, :, :]
    odd = x[..., 2 * (R // 2) :, :, :]
    both = x[..., : R // 2, :, :] + x[..., R // 2 : 2 * (R // 2), :, :]
    return halved(jnp.concatenate([both, odd], axis=-3) if R % 2 else both)


def product(dtype: DTypeLike, wide: DTypeLike) -> Callable[[str, Array, Array], Array]:
    """Einsums with operands in `dtype` and sums in `wide`."""

    def dot(spec: str, x: Array, y: Array) -> Array:
        return jnp.einsum(spec, x.astype(dtype), y.astype(dtype), preferred_element_type=wide)

    return dot
