"""Dropout by key argument: no key, no dropout (Srivastava et al. 2014)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dropout(x: Float[Array, "..."], rate: float, key: Array | None) -> Float[Array, "..."]:
    """Zero a share `rate` of `x` and scale the rest, so that the mean stays."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), 0)


def split(key: Array | None, count: int) -> tuple[Array | None, ...]:
    """`count` keys, or as many Nones."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))
