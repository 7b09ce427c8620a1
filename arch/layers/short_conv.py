"""The short causal convolution before a recurrence: its weights and its decoding state."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from arch.sharding import P, make_param
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
