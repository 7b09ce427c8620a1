"""The LSTM mixer: the classical recurrent network (Hochreiter & Schmidhuber 1997)."""

from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.layers.linear import linear
from arch.part import Memory
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import CAUSAL_ONLY, SequenceInfo, View
from arch.sharding import P, make_matrix, make_param
from ops.recurrent.lstm import lstm
from settings.types import NonNegativeInt, config


@config
class LstmConfig:
    """The LSTM mixer."""

    scaled_fields: ClassVar[tuple[str, ...]] = ("width",)
    knob_fields: ClassVar[tuple[str, ...]] = ("width",)

    width: NonNegativeInt = 0  # Number of LSTM cells (C); 0: the model's width.
    # Implementation of the operation; auto: chosen by platform.
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def inner_dim(self, D: int) -> int:
        """Returns the number of cells (C) in a model of width D."""
        return self.width or D


class LstmState(NamedTuple):
    """The decoding state of an LSTM mixer."""

    h: Float[Array, "B C"]
    c: Float[Array, "B C"]
    last_segment: Int[Array, " B"]  # Segment of the last token.


class Lstm(nnx.Module):
    """A mixer (see `arch/part.py`) whose forget gate is initialized with a bias of 1."""

    def __init__(self, D: int, cfg: LstmConfig, *, key: Array, scale: float = 1.0):
        C, keys = cfg.inner_dim(D), jax.random.split(key, 4)
        self.cfg = cfg
        # Every step needs all of h, so the recurrent matrix is not split over the model axis.
        self.w_in = make_matrix(keys[0], (D, 4 * C), P("data", None))
        self.w_h = make_matrix(keys[1], (C, 4 * C), P("data", None))
        self.b = make_param(
            keys[2], (4 * C,), P(None), _forget_gate_bias_init, role="vector", decay=False
        )
        self.w_out = make_matrix(keys[3], (C, D), P("model", "data"), scale)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        state: LstmState | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], LstmState | None]:
        """Runs the LSTM over each document, from `state` if there is one."""
        h, (last, cell) = lstm(
            *(linear(x, self.w_in[...], self.b[...]), self.w_h[...]),
            reset=seq.resets(None if state is None else state.last_segment),
            state=None if state is None else (state.h, state.c),
            implementation=self.cfg.implementation,
        )
        y = linear(h, self.w_out[...])
        return y, None if state is None else LstmState(
            last, cell, seq.last_segment(state.last_segment)
        )

    def init_state(self, batch_size: int, max_length: int, dtype: jnp.dtype) -> LstmState:
        """Returns an empty state for `batch_size` rows."""
        zeros = jnp.zeros(
            (batch_size, self.w_h[...].shape[-2]), jnp.promote_types(dtype, jnp.float32)
        )
        return LstmState(zeros, zeros, jnp.zeros((batch_size,), jnp.int32))

    @staticmethod
    def supported_views(cfg: LstmConfig) -> dict[View, str]:
        """Returns the causal views, since it reads rows in one direction."""
        return CAUSAL_ONLY

    @staticmethod
    def tp_dims(D: int, cfg: LstmConfig) -> dict[str, int]:
        """Returns no dimensions: the recurrent matrix is not split."""
        return {}

    @staticmethod
    def cost(D: int, cfg: LstmConfig, context: CostContext) -> PartCost:
        """Returns the cost of the projections, the recurrent product and the gates."""
        C = cfg.inner_dim(D)
        params = 4 * C * (D + C + 1) + C * D
        terms = {
            "projections": TermFlops(10.0 * D * C, 10.0 * D * C),
            "recurrence": TermFlops(8.0 * C * C, 8.0 * C * C),
            "gates": TermFlops(5.0 * C, 5.0 * C, elementwise=True),
        }
        return PartCost(params, params, terms, 8 * C)


def _forget_gate_bias_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    C = shape[-1] // 4
    return jnp.zeros(shape, dtype).at[C : 2 * C].set(1)
