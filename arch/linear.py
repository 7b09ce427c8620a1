"""The matrix product of every projection."""

import jax
from jaxtyping import Array, Float


def linear(
    x: Float[Array, "B T D"], w: Float[Array, "D F"], bias: Float[Array, " F"] | None = None
) -> Float[Array, "B T F"]:
    """x w + bias in the dtype of x.

    Tokens are one axis of the product, so that its gradient for w contracts one axis and needs no
    transposed copy (a third of a training step on CPU). Rows that are split along their length keep
    both axes: merging them would move them between devices.
    """
    (B, T, D), F = x.shape, w.shape[1]
    w = w.astype(x.dtype)
    split = jax.sharding.get_abstract_mesh().shape.get("context", 1) > 1
    y = x @ w if split else (x.reshape(B * T, D) @ w).reshape(B, T, F)
    return y if bias is None else y + bias.astype(x.dtype)
