"""Linear maps: the matrix product that every projection uses, and a map of low rank."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from arch.sharding import P, make_matrix, make_vector
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


class LowRank(nnx.Module):
    """A linear map through a narrow layer, `y = (x w_down) w_up + bias`."""

    def __init__(self, D: int, rank: int, width: int, *, key: Array, bias: float | None = None):
        keys = jax.random.split(key)
        self.w_down = make_matrix(keys[0], (D, rank), P("data", None))
        self.w_up = make_matrix(keys[1], (rank, width), P(None, "model"))
        self.bias = None if bias is None else make_vector(width, bias)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T C"]:
        """Maps each token."""
        bias = None if self.bias is None else self.bias[...]
        return linear(linear(x, self.w_down[...]), self.w_up[...], bias)
