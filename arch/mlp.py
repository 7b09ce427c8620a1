"""Two-layer feed-forward channel, plain or gated (GLU variants, Shazeer, arXiv:2002.05202)."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.ledger import Bill, Place, Work
from arch.linear import linear
from arch.sequence import EVERYWHERE, Sequence
from arch.sharding import P, matrix, vector
from schema import Natural, config

Activation = Literal[
    "silu", "gelu", "gelu_tanh", "quick_gelu", "gelu_bloom", "relu", "relu2", "tanh"
]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # arXiv:1606.08415, section 2
    # BLOOM cuts sqrt(2 / pi) off after eight digits.
    "gelu_bloom": lambda x: 0.5 * x * (1 + jnp.tanh(0.79788456 * x * (1 + 0.044715 * x * x))),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # arXiv:2109.08668
    "tanh": jnp.tanh,
}


@config
class MlpConfig:
    width: Natural = 0  # F; 0: 4 D, gated 8/3 D up to the next multiple of 64
    gated: bool = True
    activation: Activation = "silu"
    bias: bool = False

    def size(self, D: int) -> int:
        if self.width:
            return self.width
        return -(-8 * D // (3 * 64)) * 64 if self.gated else 4 * D


class Mlp(nnx.Module):
    """w_out(act(w_in x)), or w_out(act(w_gate x) * w_in x) if gated."""

    views = staticmethod(lambda cfg: EVERYWHERE)
    remedy = "use another channel"  # where a view is refused

    def __init__(self, D: int, cfg: MlpConfig, *, key: Array, scale: float = 1.0):
        F, keys = cfg.size(D), jax.random.split(key, 3)
        self.cfg = cfg
        self.w_in = matrix(keys[0], (D, F), P("data", "model"))
        if cfg.gated:
            self.w_gate = matrix(keys[1], (D, F), P("data", "model"))
        self.w_out = matrix(keys[2], (F, D), P("model", "data"), scale)
        if cfg.bias:
            self.b_in, self.b_out = vector(F, 0.0), vector(D, 0.0)
            if cfg.gated:
                self.b_gate = vector(F, 0.0)

    def __call__(
        self, x: Float[Array, "B T D"], seq: Sequence, *, key: Array | None = None
    ) -> tuple[Float[Array, "B T D"], dict]:
        act = ACTIVATIONS[self.cfg.activation]
        bias = self.cfg.bias
        h = linear(x, self.w_in[...], self.b_in[...] if bias else None)
        if self.cfg.gated:
            h = h * act(linear(x, self.w_gate[...], self.b_gate[...] if bias else None))
        else:
            h = act(h)
        return linear(h, self.w_out[...], self.b_out[...] if bias else None), {}

    @staticmethod
    def losses(cfg: MlpConfig) -> dict[str, float]:
        return {}

    @staticmethod
    def cuts(D: int, cfg: MlpConfig) -> dict[str, int]:
        return {"width": cfg.size(D)}

    @staticmethod
    def cost(D: int, cfg: MlpConfig, place: Place) -> Bill:
        F, into = cfg.size(D), 2 if cfg.gated else 1
        params = (into + 1) * D * F + cfg.bias * (into * F + D)
        flops = 2.0 * (into + 1) * D * F
        return Bill(params, params, {"mlp": Work(flops, flops)})
