"""The gated linear attention mixer: a matrix memory whose channels decay (arXiv:2312.06635).

Each of H heads has a state [K Kv]. A token decays each channel of the keys by its own rate and adds
its value under its key. The decay is a map of low rank.
"""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from arch.cross_layer import LayerContext
from arch.layers.activations import gate
from arch.layers.linear import LowRank, linear
from arch.mixers.matrix_memory import (
    MatrixMemory,
    MemoryState,
    check_rank,
    head_widths,
    run_recurrence,
)
from arch.mixers.memory_cost import linear_attention_terms, memory_cost
from arch.part_cost import CostContext, PartCost
from arch.sharding import P, make_matrix, make_vector
from ops.recurrent.gla import gla
from settings.types import NonNegativeInt, PositiveFloat, PositiveInt, config


@config
class GlaConfig:
    """The gated linear attention mixer."""

    scaled_fields: ClassVar[tuple[str, ...]] = ("heads",)
    knob_fields: ClassVar[tuple[str, ...]] = ()

    heads: PositiveInt = 4  # Number of heads (H).
    key_dim: NonNegativeInt = 0  # Width of a head's keys (K); 0: Kv / 2.
    value_dim: NonNegativeInt = 0  # Width of a head's values (Kv); 0: D / H.
    gate_rank: PositiveInt = 16  # Rank of the map to the decay.
    gate_temperature: PositiveFloat = 16.0  # Number that divides the logarithm of the decay.
    chunk_size: PositiveInt = 64  # Tokens per chunk of the chunked algorithm (Q).
    norm_eps: PositiveFloat = 1e-6  # Number added to the mean square in the output norm.
    # Implementation of the operation; auto: chosen by platform.
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def head_shape(self, D: int) -> tuple[int, int, int]:
        """Returns H, K and Kv in a model of width D.

        Raises:
            ConfigError: if the heads do not divide the width and `value_dim` is 0, or the rank
                of the map to the decay is above the width.
        """
        check_rank(D, "gla.gate_rank", self.gate_rank)
        H, Kv, K = head_widths(D, "gla", "value_dim", self.heads, self.value_dim, self.key_dim)
        return H, K if self.key_dim else max(Kv // 2, 1), Kv


class Gla(MatrixMemory[GlaConfig]):
    """A mixer (see `arch/part.py`) with a state [K Kv] per head that decays by channel."""

    def __init__(self, D: int, cfg: GlaConfig, *, key: Array, scale: float = 1.0):
        H, K, Kv = self.head_shape = cfg.head_shape(D)
        self.cfg, keys = cfg, jax.random.split(key, 6)
        self.w_q = make_matrix(keys[0], (D, H * K), P("data", "model"))
        self.w_k = make_matrix(keys[1], (D, H * K), P("data", "model"))
        self.w_v = make_matrix(keys[2], (D, H * Kv), P("data", "model"))
        self.decay = LowRank(D, cfg.gate_rank, H * K, key=keys[3], bias=0.0)
        self.w_gate = make_matrix(keys[4], (D, H * Kv), P("data", "model"))
        self.norm = make_vector(Kv, 1.0)
        self.w_out = make_matrix(keys[5], (H * Kv, D), P("model", "data"), scale)

    def update(
        self,
        x: Float[Array, "B T D"],
        reset: Bool[Array, "B T"],
        state: MemoryState | None,
        layer_context: LayerContext | None,
    ) -> tuple[Float[Array, "B T H Kv"], tuple[Array, ...], Float[Array, "B H K Kv"]]:
        """Runs the recurrence over each document, from `state` if there is one."""
        cfg, (H, K, _) = self.cfg, self.head_shape
        q, k, v, raw = (
            rearrange(z, "b t (h k) -> b t h k", h=H)
            for z in (*(linear(x, w[...]) for w in (self.w_q, self.w_k, self.w_v)), self.decay(x))
        )
        wide = jnp.promote_types(x.dtype, jnp.float32)
        inputs = q * K**-0.5, k, v, jax.nn.log_sigmoid(raw.astype(wide)) / cfg.gate_temperature
        return run_recurrence(gla, inputs, cfg, reset, state)

    def gate_output(
        self, y: Float[Array, "B T C"], x: Float[Array, "B T D"]
    ) -> Float[Array, "B T C"]:
        """Returns the normed outputs times a gate for each channel."""
        return gate(y, linear(x, self.w_gate[...]), "silu")

    @staticmethod
    def cost(D: int, cfg: GlaConfig, context: CostContext) -> PartCost:
        """Returns the cost: model FLOPs are those of decaying, reading and writing the state."""
        shape = H, K, Kv = cfg.head_shape(D)
        terms = linear_attention_terms(D, cfg, context, by_channel=True)
        return memory_cost(
            *(D, shape, context),
            matrices=D * (2 * H * (K + Kv) + cfg.gate_rank) + cfg.gate_rank * H * K,
            vectors=H * K + Kv,
            terms=terms,
        )
