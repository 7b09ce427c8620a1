"""Dropout with an explicit key: without a key there is no dropout (Srivastava et al. 2014)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dropout(x: Float[Array, "..."], rate: float, key: Array | None) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and rescales the others to keep the mean."""
    if key is None or rate == 0:
        return x
    mask = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(mask, x / jnp.asarray(1 - rate, x.dtype), 0)


def maybe_split_key(key: Array | None, num: int) -> tuple[Array | None, ...]:
    """Splits `key` into `num` keys; without a key, returns `num` times None."""
    return (None,) * num if key is None else tuple(jax.random.split(key, num))
