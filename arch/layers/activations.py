"""The activation functions, by the names that settings use."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.recompute import recompute

Activation = Literal[
    "silu",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "gelu_bloom",
    "relu",
    "relu2",
    "tanh",
    "clipped_swish",
]
CLIP = 7.0  # gpt-oss's `swiglu_limit`
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # arXiv:1606.08415, section 2
    # BLOOM rounds sqrt(2 / pi) to eight digits.
    "gelu_bloom": lambda x: 0.5 * x * (1 + jnp.tanh(0.79788456 * x * (1 + 0.044715 * x * x))),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # arXiv:2109.08668
    "tanh": jnp.tanh,
    # With a gate, gpt-oss's (clip(h) + 1) swish(min(gate, 7)).
    "clipped_swish": lambda x: jnp.minimum(x, CLIP) * jax.nn.sigmoid(1.702 * jnp.minimum(x, CLIP)),
}


@dataclasses.dataclass(frozen=True)
class Hidden:
    """The hidden layer `hidden(h, gate)` of an MLP: act(h), or h act(gate) if it has a gate."""

    activation: Activation

    def __call__(
        self, h: Float[Array, "..."], gate: Float[Array, "..."] | None
    ) -> Float[Array, "..."]:
        """Applies the activation; "clipped_swish" also clips a gated h, and adds 1 to it."""
        act = ACTIVATIONS[self.activation]
        if gate is None:
            return act(h)
        return (jnp.clip(h, -CLIP, CLIP) + 1 if self.activation == "clipped_swish" else h) * act(
            gate
        )


@functools.partial(recompute, static_argnums=1)
def activate(x: Float[Array, "..."], activation: Activation) -> Float[Array, "..."]:
    """Computes the activation of x."""
    return ACTIVATIONS[activation](x)


@functools.partial(recompute, static_argnums=2)
def gate(
    x: Float[Array, "..."], gate: Float[Array, "..."], activation: Activation
) -> Float[Array, "..."]:
    """Computes x activation(gate)."""
    return x * ACTIVATIONS[activation](gate)
