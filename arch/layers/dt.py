"""The step size dt of a recurrence and its initialization (Mamba, arXiv:2312.00752, section 3.6).

    dt = softplus(x w + bias)

At initialization softplus(bias) is log-uniform in [dt_min, dt_max] and at least dt_init_floor. A
channel of an untrained model then remembers between 1 / dt_max and 1 / dt_min tokens.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.sharding import Initializer, P, make_param
from errors import ConfigError
from ops.recompute import recompute
from settings.types import PositiveFloat, config


@config
class DtConfig:
    """The initial step sizes of a recurrence, log-uniform between two bounds."""

    dt_min: PositiveFloat = 1e-3  # Smallest initial step size.
    dt_max: PositiveFloat = 1e-1  # Largest initial step size.
    dt_init_floor: PositiveFloat = 1e-4  # Lower bound of every initial step size.

    def check(self) -> None:
        """Checks the order of the bounds.

        Raises:
            ConfigError: if `dt_min` is above `dt_max`.
        """
        if self.dt_min > self.dt_max:
            raise ConfigError(
                f"dt.dt_min {self.dt_min:g} is above dt.dt_max {self.dt_max:g}; swap them"
            )


def make_dt_bias(key: Array, width: int, cfg: DtConfig) -> nnx.Param:
    """Makes the bias [C] that is added before the softplus; weight decay does not apply to it."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        low, high = math.log(cfg.dt_min), math.log(cfg.dt_max)
        dt = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
        dt = jnp.maximum(dt, cfg.dt_init_floor)
        return dt + jnp.log(-jnp.expm1(-dt))  # The inverse of softplus.

    return make_param(key, (width,), P("model"), init, role="vector", decay=False)


def softplus_dt(
    x: Float[Array, "B T C"], bias: Float[Array, " C"], dt_min: float = 0.0, dt_max: float = 0.0
) -> Float[Array, "B T C"]:
    """Computes softplus(x + bias) in at least float32, clipped to [dt_min, dt_max].

    A `dt_max` of 0 means no upper bound.
    """
    return _softplus_dt(x, bias, dt_min, dt_max)


@functools.partial(recompute, static_argnums=(2, 3))
def _softplus_dt(
    x: Float[Array, "B T C"], bias: Float[Array, " C"], dt_min: float, dt_max: float
) -> Float[Array, "B T C"]:
    dt = jax.nn.softplus(x.astype(bias.dtype) + bias)
    return jnp.clip(dt, dt_min, dt_max or None) if dt_min or dt_max else dt


def log_a_init(low: float, high: float) -> Initializer:
    """Returns an initializer of log(a), where the decay rates a are uniform in [low, high]."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return jnp.log(jax.random.uniform(key, shape, dtype, low, high))

    return init
