"""The gated short convolution: y = w_out(c * conv(b * u)) with b, c and u linear in x.

It is the inner part of H3 (arXiv:2212.14052) with a short filter; BaseConv (arXiv:2312.04927) has
one of the two gates. A token sees only as many tokens as the convolution is wide, so this mixer is
the lower end of a comparison of recall.
"""

from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.layers.linear import linear
from arch.layers.short_conv import ShortConv
from arch.part import Memory
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import CAUSAL_ONLY, SequenceInfo, View
from arch.sharding import P, make_matrix
from settings.types import NonNegativeInt, PositiveInt, config


@config
class GatedConvConfig:
    """The gated short convolution."""

    scaled_fields: ClassVar[tuple[str, ...]] = ("width",)
    knob_fields: ClassVar[tuple[str, ...]] = ("width",)

    width: NonNegativeInt = 0  # Number of channels (C); 0: the model's width.
    conv_width: PositiveInt = 4  # Width of the convolution (W), in tokens.
    conv_bias: bool = False  # Add a bias to the convolution.
    # Implementation of the operation; auto: chosen by platform.
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def inner_dim(self, D: int) -> int:
        """Returns the number of channels (C) in a model of width D."""
        return self.width or D


class GatedConvState(NamedTuple):
    """The decoding state of a gated convolution."""

    conv: Float[Array, "B W-1 C"]
    last_segment: Int[Array, " B"]  # Segment of the last token.


class GatedConv(nnx.Module):
    """A mixer (see `arch/part.py`) with a gate before and after a short convolution."""

    def __init__(self, D: int, cfg: GatedConvConfig, *, key: Array, scale: float = 1.0):
        C, keys = cfg.inner_dim(D), jax.random.split(key, 5)
        self.cfg = cfg
        self.w_in = make_matrix(keys[0], (D, C), P("data", "model"))
        self.w_input_gate = make_matrix(keys[1], (D, C), P("data", "model"))
        self.w_output_gate = make_matrix(keys[2], (D, C), P("data", "model"))
        self.conv = ShortConv(cfg.conv_width, C, bias=cfg.conv_bias, key=keys[3])
        self.w_out = make_matrix(keys[4], (C, D), P("model", "data"), scale)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        state: GatedConvState | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], GatedConvState | None]:
        """Mixes each token with the few before it, within its document."""
        reset = seq.resets(None if state is None else state.last_segment)
        u = linear(x, self.w_input_gate[...]) * linear(x, self.w_in[...])
        u, conv = self.conv(
            u, reset, None if state is None else state.conv, self.cfg.implementation
        )
        y = linear(linear(x, self.w_output_gate[...]) * u, self.w_out[...])
        return y, None if state is None else GatedConvState(
            conv, seq.last_segment(state.last_segment)
        )

    def init_state(self, batch_size: int, max_length: int, dtype: jnp.dtype) -> GatedConvState:
        """Returns an empty state for `batch_size` rows."""
        return GatedConvState(
            self.conv.init_state(batch_size, dtype), jnp.zeros((batch_size,), jnp.int32)
        )

    @staticmethod
    def supported_views(cfg: GatedConvConfig) -> dict[View, str]:
        """Returns the causal views, since it reads rows in one direction."""
        return CAUSAL_ONLY

    @staticmethod
    def tp_dims(D: int, cfg: GatedConvConfig) -> dict[str, int]:
        """Returns the dimensions that tensor parallelism splits."""
        return {"width": cfg.inner_dim(D)}

    @staticmethod
    def cost(D: int, cfg: GatedConvConfig, context: CostContext) -> PartCost:
        """Returns the cost of the four projections and the convolution."""
        C, W = cfg.inner_dim(D), cfg.conv_width
        params = 4 * D * C + (W + cfg.conv_bias) * C
        terms = {
            "projections": TermFlops(8.0 * D * C, 8.0 * D * C),
            "conv": TermFlops(2.0 * W * C, 2.0 * W * C, elementwise=True),
        }
        return PartCost(params, params, terms, context.itemsize * (W - 1) * C)
