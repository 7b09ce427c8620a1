"""Recurrences of heads in chunks: products of matrices inside one, steps from one to the next.

B rows, T tokens, N chunks of Q tokens, H heads. What a state loses is given as logs g <= 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float

from ops.placement import platform

CHUNK = {"cpu": 32}  # tokens, where the caller leaves it open; else 64
GONE = -1e30  # the log of nothing that can still be added up


class Decays(NamedTuple):
    """What is left of a state in a chunk; 0 where a document begins in between."""

    within: Float[Array, "B H Q Q"]  # from the end of token j to the end of token i >= j, else 0
    into: Float[Array, "B H Q"]  # from before the chunk to the end of token i
    out: Float[Array, "B H Q"]  # from the end of token j to the end of the chunk
    through: Float[Array, "B H"]


def sizes(length: int, chunk: int | None) -> tuple[int, int]:
    """How many chunks of at most `chunk` tokens, and how long they are."""
    count = -(-length // (chunk or CHUNK.get(platform(), 64)))
    return count, -(-length // count)


def split(x: Float[Array, "B T H *rest"], count: int, size: int) -> Float[Array, "N B H Q *rest"]:
    """Zeros complete the last chunk."""
    B, T, *rest = x.shape
    x = jnp.pad(x, [(0, 0), (0, count * size - T), *[(0, 0)] * len(rest)])
    return jnp.moveaxis(x.reshape(B, count, size, *rest), (1, 2), (0, 3))


def join(x: Float[Array, "N B H Q *rest"], length: int) -> Float[Array, "B T H *rest"]:
    """The inverse of `split`."""
    x = jnp.moveaxis(x, (0, 3), (1, 2))
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def forgetting(g: Float[Array, "B T H"], reset: Bool[Array, "B T"]) -> Float[Array, "B T H"]:
    """`g`, with nothing left where a document begins."""
    return jnp.where(reset[..., None], GONE, g)


def decays(g: Float[Array, "B H Q"]) -> Decays:
    """Logs of one sign are added up: differences of cumulative sums would lose what is small beside
    what came before it."""
    i, j = np.ogrid[: g.shape[2], : g.shape[2]]
    between = jnp.cumsum(jnp.where(i > j, g[..., None], 0), axis=-2)  # of tokens j + 1 .. i
    within = jnp.exp(between) * (i >= j)
    into = jnp.exp(jnp.cumsum(g, axis=-1))
    return Decays(within, into, within[..., -1, :], into[..., -1])


def product(dtype: DTypeLike, wide: DTypeLike) -> Callable[[str, Array, Array], Array]:
    """Einsums with operands in `dtype` and sums in `wide`."""

    def dot(spec: str, x: Array, y: Array) -> Array:
        return jnp.einsum(spec, x.astype(dtype), y.astype(dtype), preferred_element_type=wide)

    return dot
