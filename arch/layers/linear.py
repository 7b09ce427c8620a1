"""The matrix product that every projection uses."""

import jax
from jaxtyping import Array, Float

from ops.recompute import recompute


@recompute
def linear(
    x: Float[Array, "B T D"], w: Float[Array, "D F"], bias: Float[Array, " F"] | None = None
) -> Float[Array, "B T F"]:
    """Computes x w + bias in the dtype of x.

    Batch and tokens are merged into one axis, so that the gradient of w contracts one axis and
    needs no transposed copy (a third of a training step on CPU). If rows are split over devices
    along their length, both axes remain: merging them would move tokens between devices. The
    backward pass keeps x itself, so that several products of one x keep it once.
    """
    (B, T, D), F = x.shape, w.shape[1]
    w = w.astype(x.dtype)
    is_split = jax.sharding.get_abstract_mesh().shape.get("context", 1) > 1
    y = x @ w if is_split else (x.reshape(B * T, D) @ w).reshape(B, T, F)
    return y if bias is None else y + bias.astype(x.dtype)
