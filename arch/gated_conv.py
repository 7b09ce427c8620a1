"""Gated short convolution: y = w_out(c * conv(b * u)) with b, c, u linear in x.

The inner part of H3 (arXiv:2212.14052) with a short filter; BaseConv (arXiv:2312.04927) has one of
the two gates. It sees as many tokens as it has taps, whatever the length: the weak end of recall.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.ledger import Bill, Place, Work
from arch.linear import linear
from arch.sequence import ONE_WAY, Sequence
from arch.sharding import P, matrix
from arch.taps import Taps
from schema import Count, Natural, config


@config
class GatedConvConfig:
    width: Natural = 0  # C; 0: D
    conv: Count = 4  # K, taps
    conv_bias: bool = False
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def size(self, D: int) -> int:
        return self.width or D


class GatedConvState(NamedTuple):
    conv: Float[Array, "B K-1 C"]
    last: Int[Array, " B"]  # segment of the last token


class GatedConv(nnx.Module):
    """A mixer (see `arch/model.py`)."""

    views = staticmethod(lambda cfg: ONE_WAY)

    def __init__(self, D: int, cfg: GatedConvConfig, *, key: Array, scale: float = 1.0):
        C, keys = cfg.size(D), jax.random.split(key, 5)
        self.cfg = cfg
        self.w_in = matrix(keys[0], (D, C), P("data", "model"))
        self.w_before = matrix(keys[1], (D, C), P("data", "model"))
        self.w_after = matrix(keys[2], (D, C), P("data", "model"))
        self.conv = Taps(cfg.conv, C, bias=cfg.conv_bias, key=keys[3])
        self.w_out = matrix(keys[4], (C, D), P("model", "data"), scale)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: Sequence,
        *,
        state: GatedConvState | None = None,
        memory: Any = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], GatedConvState | None]:
        reset = seq.begins(None if state is None else state.last)
        u = linear(x, self.w_before[...]) * linear(x, self.w_in[...])
        u, conv = self.conv(
            u, reset, None if state is None else state.conv, self.cfg.implementation
        )
        y = linear(linear(x, self.w_after[...]) * u, self.w_out[...])
        return y, None if state is None else GatedConvState(conv, seq.ends(state.last))

    def start(self, batch: int, capacity: int, dtype: jnp.dtype) -> GatedConvState:
        return GatedConvState(self.conv.start(batch, dtype), jnp.zeros((batch,), jnp.int32))

    @staticmethod
    def cuts(D: int, cfg: GatedConvConfig) -> dict[str, int]:
        return {"width": cfg.size(D)}

    @staticmethod
    def cost(D: int, cfg: GatedConvConfig, place: Place) -> Bill:
        C, K = cfg.size(D), cfg.conv
        params = 4 * D * C + (K + cfg.conv_bias) * C
        work = {
            "projections": Work(8.0 * D * C, 8.0 * D * C),
            "conv": Work(2.0 * K * C, 2.0 * K * C, elementwise=True),
        }
        return Bill(params, params, work, place.itemsize * (K - 1) * C)
