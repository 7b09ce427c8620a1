"""The activation functions, by the names that settings use."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.recompute import recompute

Activation = Literal[
    "silu", "gelu", "gelu_tanh", "quick_gelu", "gelu_bloom", "relu", "relu2", "tanh"
]
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
}


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
