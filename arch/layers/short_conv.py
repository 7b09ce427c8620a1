"""The short causal convolution before a recurrence, with its decoding state, and heads of it."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from arch.layers.activations import activate
from arch.layers.linear import linear
from arch.sharding import P, make_matrix, make_param
from ops.recurrent.causal_conv import causal_conv


class ShortConv(nnx.Module):
    """A depthwise causal convolution of width W, `conv(x, reset, state) -> (y, state)`.

    Weights and bias are initialized uniformly in [-W^-1/2, W^-1/2].
    """

    def __init__(self, W: int, C: int, *, bias: bool, key: Array):
        keys = jax.random.split(key)

        def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
            return jax.random.uniform(key, shape, dtype, -(W**-0.5), W**-0.5)

        self.w = make_param(keys[0], (W, C), P(None, "model"), init)
        self.b = (
            make_param(keys[1], (C,), P("model"), init, role="vector", decay=False)
            if bias
            else None
        )

    def __call__(
        self,
        x: Float[Array, "B T C"],
        reset: Bool[Array, "B T"],
        state: Float[Array, "B W-1 C"] | None,
        implementation: str,
    ) -> tuple[Float[Array, "B T C"], Float[Array, "B W-1 C"]]:
        """Convolves each document; `state` holds the inputs before x and is returned updated."""
        bias = None if self.b is None else self.b[...]
        return causal_conv(
            x, self.w[...], bias, reset=reset, state=state, implementation=implementation
        )

    def init_state(self, batch_size: int, dtype: jnp.dtype) -> Float[Array, "B W-1 C"]:
        """Returns the inputs before the first token: zeros."""
        W, C = self.w[...].shape[-2:]
        return jnp.zeros((batch_size, W - 1, C), dtype)


class ConvHeads(nnx.Module):
    """Projections to heads, each followed by a short convolution and SiLU."""

    def __init__(self, D: int, H: int, widths: tuple[int, ...], conv_width: int, *, key: Array):
        keys = jax.random.split(key, 2 * len(widths))
        self.widths = widths
        self.matrices = nnx.List(
            make_matrix(k, (D, H * width), P("data", "model"))
            for k, width in zip(keys[::2], widths, strict=True)
        )
        self.convs = nnx.List(
            ShortConv(conv_width, H * width, bias=False, key=k)
            for k, width in zip(keys[1::2], widths, strict=True)
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        reset: Bool[Array, "B T"],
        states: tuple[Array, ...] | None,
        implementation: str,
    ) -> tuple[list[Float[Array, "B T H width"]], tuple[Array, ...]]:
        """Returns the heads of each projection, and the new states of the convolutions."""
        return conv_heads(x, self.matrices, self.convs, self.widths, reset, states, implementation)

    def init_state(self, batch_size: int, dtype: jnp.dtype) -> tuple[Array, ...]:
        """Returns the inputs before the first token: zeros."""
        return tuple(conv.init_state(batch_size, dtype) for conv in self.convs)


def conv_heads(
    x: Float[Array, "B T D"],
    matrices: Iterable[nnx.Param],
    convs: Sequence[ShortConv],
    widths: Sequence[int],
    reset: Bool[Array, "B T"],
    states: Sequence[Array] | None,
    implementation: str,
) -> tuple[list[Float[Array, "B T H width"]], tuple[Array, ...]]:
    """Projects x by each matrix, convolves, applies SiLU and divides into heads of a width.

    Returns the heads of each projection, and the new states of the convolutions.
    """
    prev = (None,) * len(convs) if states is None else states
    heads, new = [], []
    for w, conv, width, state in zip(matrices, convs, widths, prev, strict=True):
        y, state = conv(linear(x, w[...]), reset, state, implementation)
        heads.append(rearrange(activate(y, "silu"), "b t (h k) -> b t h k", k=width))
        new.append(state)
    return heads, tuple(new)
