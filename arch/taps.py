"""The short causal convolution in front of a recurrence: its weights, and the op on them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from arch.sharding import P, weight
from ops.causal_conv import causal_conv


class Taps(nnx.Module):
    """K weights a channel, uniform in +-K^-1/2 at the start; `taps(x, reset, state)`."""

    def __init__(self, K: int, C: int, *, bias: bool, key: Array):
        keys = jax.random.split(key)

        def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
            return jax.random.uniform(key, shape, dtype, -(K**-0.5), K**-0.5)

        self.w = weight(keys[0], (K, C), P(None, "model"), init)
        one = P("model")
        self.b = weight(keys[1], (C,), one, init, role="vector", decay=False) if bias else None

    def __call__(
        self,
        x: Float[Array, "B T C"],
        reset: Bool[Array, "B T"],
        state: Float[Array, "B K-1 C"] | None,
        implementation: str,
    ) -> tuple[Float[Array, "B T C"], Float[Array, "B K-1 C"]]:
        bias = None if self.b is None else self.b[...]
        return causal_conv(
            x, self.w[...], bias, reset=reset, state=state, implementation=implementation
        )

    def start(self, batch: int, dtype: jnp.dtype) -> Float[Array, "B K-1 C"]:
        K, C = self.w[...].shape[-2:]
        return jnp.zeros((batch, K - 1, C), dtype)
