"""Step sizes of recurrences: how far a channel moves with a token, and where that starts.

    dt = softplus(x w + bias);   softplus(bias) is log-uniform in [low, high], at least floor

(Mamba, arXiv:2312.00752, section 3.6). With steps like these a channel at the start remembers
between 1 / high and 1 / low tokens.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.sharding import Initializer, P, weight
from errors import ConfigError
from schema import Positive, config


@config
class StepConfig:
    low: Positive = 1e-3
    high: Positive = 1e-1
    floor: Positive = 1e-4

    def check(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"step.low {self.low:g} is above step.high {self.high:g}; swap them")


def step_bias(key: Array, width: int, cfg: StepConfig) -> nnx.Param:
    """The bias [C] before the softplus, outside weight decay."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        low, high = math.log(cfg.low), math.log(cfg.high)
        dt = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
        dt = jnp.maximum(dt, cfg.floor)
        return dt + jnp.log(-jnp.expm1(-dt))  # the inverse of softplus

    return weight(key, (width,), P("model"), init, role="vector", decay=False)


def step_size(
    x: Float[Array, "B T C"], bias: Float[Array, " C"], low: float = 0.0, high: float = 0.0
) -> Float[Array, "B T C"]:
    """softplus(x + bias) in at least float32, within [low, high] (high 0: no bound)."""
    dt = jax.nn.softplus(x.astype(bias.dtype) + bias)
    return jnp.clip(dt, low, high or None) if low or high else dt


def log_rates(low: float, high: float) -> Initializer:
    """An initializer of the log of rates of forgetting, which are uniform in [low, high]."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return jnp.log(jax.random.uniform(key, shape, dtype, low, high))

    return init
