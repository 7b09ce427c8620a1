"""The Kimi Delta Attention mixer: the delta rule with a decay for each channel (arXiv:2510.26692).

Each of H heads has a state [K Kv]. A token decays each channel of the keys by its own rate, removes
the value at its key, and writes its own value there. Decay and output gate are maps of low rank.
"""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from arch.cross_layer import LayerContext
from arch.layers.dt import DtConfig, log_a_init, make_dt_bias, softplus_dt
from arch.layers.linear import LowRank, linear
from arch.layers.norms import unit_length
from arch.layers.short_conv import ConvHeads
from arch.mixers.matrix_memory import (
    MatrixMemory,
    MemoryState,
    check_rank,
    head_widths,
    run_recurrence,
)
from arch.mixers.memory_cost import memory_cost, memory_terms
from arch.part_cost import CostContext, PartCost
from arch.sharding import P, make_matrix, make_param, make_vector
from ops.recurrent.delta_rule import delta_rule
from settings.types import NonNegativeInt, PositiveFloat, PositiveInt, config


@config
class KdaConfig:
    """The Kimi Delta Attention mixer."""

    scaled_fields: ClassVar[tuple[str, ...]] = ("heads",)
    knob_fields: ClassVar[tuple[str, ...]] = ()

    heads: PositiveInt = 4  # Number of heads (H).
    key_dim: NonNegativeInt = 0  # Width of a head's keys (K); 0: D / H.
    value_dim: NonNegativeInt = 0  # Width of a head's values (Kv); 0: K.
    gate_rank: NonNegativeInt = 0  # Rank of the maps to decay and output gate; 0: Kv.
    gate_bias: bool = True  # Add a bias to the map to the output gate.
    conv_width: PositiveInt = 4  # Width of the convolutions, in tokens.
    # Let eigenvalues of the transition lie in [-1, 1] instead of [0, 1].
    allow_negative_eigenvalues: bool = False
    chunk_size: PositiveInt = 64  # Tokens per chunk of the chunked algorithm (Q).
    norm_eps: PositiveFloat = 1e-6  # Number added to the mean square in the output norm.
    dt: DtConfig = DtConfig()
    # Implementation of the operation; auto: chosen by platform.
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def head_shape(self, D: int) -> tuple[int, int, int]:
        """Returns H, K and Kv in a model of width D.

        Raises:
            ConfigError: if the heads do not divide the width and `key_dim` is 0, or the rank of
                the maps to the gates is above the width.
        """
        check_rank(D, "kda.gate_rank", self.gate_rank)
        return head_widths(D, "kda", "key_dim", self.heads, self.key_dim, self.value_dim)


class Kda(MatrixMemory[KdaConfig]):
    """A mixer (see `arch/part.py`) with a state [K Kv] per head that decays by channel."""

    def __init__(self, D: int, cfg: KdaConfig, *, key: Array, scale: float = 1.0):
        H, K, Kv = self.head_shape = cfg.head_shape(D)
        self.cfg, keys, rank = cfg, jax.random.split(key, 7), cfg.gate_rank or Kv
        self.qkv = ConvHeads(D, H, (K, K, Kv), cfg.conv_width, key=keys[0])
        self.decay = LowRank(D, rank, H * K, key=keys[1])
        self.gate = LowRank(D, rank, H * Kv, key=keys[2], bias=0.0 if cfg.gate_bias else None)
        self.w_beta = make_matrix(keys[3], (D, H), P("data", "model"))
        self.b_dt = make_dt_bias(keys[4], H * K, cfg.dt)
        self.log_a = make_param(
            keys[5], (H,), P("model"), log_a_init(1.0, 16.0), role="vector", decay=False
        )
        self.norm = make_vector(Kv, 1.0)
        self.w_out = make_matrix(keys[6], (H * Kv, D), P("model", "data"), scale)

    def update(
        self,
        x: Float[Array, "B T D"],
        reset: Bool[Array, "B T"],
        state: MemoryState | None,
        layer_context: LayerContext | None,
    ) -> tuple[Float[Array, "B T H Kv"], tuple[Array, ...], Float[Array, "B H K Kv"]]:
        """Runs the recurrence over each document, from `state` if there is one."""
        cfg, (H, K, _) = self.cfg, self.head_shape
        prev = None if state is None else state.convs
        (q, k, v), convs = self.qkv(x, reset, prev, cfg.implementation)
        dt = softplus_dt(self.decay(x), self.b_dt[...])
        g = -jnp.exp(self.log_a[...])[:, None] * rearrange(dt, "b t (h k) -> b t h k", h=H)
        beta = jax.nn.sigmoid(linear(x, self.w_beta[...]).astype(g.dtype))[..., None]
        beta = 2 * beta if cfg.allow_negative_eigenvalues else beta
        inputs = unit_length(q) * K**-0.5, unit_length(k), v, g, beta, beta
        return run_recurrence(delta_rule, inputs, cfg, reset, state, convs)

    def gate_output(
        self, y: Float[Array, "B T C"], x: Float[Array, "B T D"]
    ) -> Float[Array, "B T C"]:
        """Returns the normed outputs times a gate for each channel."""
        return y * jax.nn.sigmoid(self.gate(x))

    def init_convs(self, batch_size: int, dtype: jnp.dtype) -> tuple[Array, ...]:
        """Returns the inputs of the convolutions before the first token: zeros."""
        return self.qkv.init_state(batch_size, dtype)

    @staticmethod
    def cost(D: int, cfg: KdaConfig, context: CostContext) -> PartCost:
        """Returns the cost: model FLOPs are those of decaying, reading and correcting the state."""
        shape = H, K, Kv = cfg.head_shape(D)
        rank, channels = cfg.gate_rank or Kv, H * (2 * K + Kv)
        terms = memory_terms(
            *(shape, 7.0, context),
            implementation=cfg.implementation,
            chunk_size=cfg.chunk_size,
            by_channel=True,
        )
        return memory_cost(
            *(D, shape, context),
            matrices=D * (channels + H + 2 * rank) + rank * H * (K + Kv),
            vectors=cfg.gate_bias * H * Kv + H * K + H + Kv,
            terms=terms,
            convs=(channels, cfg.conv_width),
        )
