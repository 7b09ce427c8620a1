"""The activation functions, by the names that settings use."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

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
