"""The Gated DeltaProduct mixer: several steps of the delta rule for each token (arXiv:2502.10297).

Each of H heads has a state [K Kv]. A token decays the state once, and then removes and writes a
value at each of its n keys. With one step it is Gated DeltaNet.
"""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from arch.cross_layer import LayerContext
from arch.layers.activations import gate
from arch.layers.dt import DtConfig, log_a_init, make_dt_bias, softplus_dt
from arch.layers.linear import linear
from arch.layers.norms import unit_length
from arch.layers.short_conv import ConvHeads
from arch.mixers.matrix_memory import MatrixMemory, MemoryState, head_widths, run_recurrence
from arch.mixers.memory_cost import memory_cost, memory_terms
from arch.part_cost import CostContext, PartCost
from arch.sharding import P, make_matrix, make_param, make_vector
from ops.recurrent.delta_rule import delta_rule
from settings.types import NonNegativeInt, PositiveFloat, PositiveInt, config


@config
class DeltaProductConfig:
    """The Gated DeltaProduct mixer."""

    scaled_fields: ClassVar[tuple[str, ...]] = ("heads",)
    knob_fields: ClassVar[tuple[str, ...]] = ()

    heads: PositiveInt = 4  # Number of heads (H).
    key_dim: NonNegativeInt = 0  # Width of a head's keys (K); 0: D / H.
    value_dim: NonNegativeInt = 0  # Width of a head's values (Kv); 0: K.
    householder_steps: PositiveInt = 2  # Steps of the delta rule for each token (n).
    conv_width: PositiveInt = 4  # Width of the convolutions, in tokens.
    allow_negative_eigenvalues: bool = False  # In [-1, 1] instead of [0, 1].
    chunk_size: PositiveInt = 64  # Steps per chunk of the chunked algorithm (Q).
    norm_eps: PositiveFloat = 1e-6  # Number added to the mean square in the output norm.
    dt: DtConfig = DtConfig()
    # Implementation of the operation; auto: chosen by platform.
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def head_shape(self, D: int) -> tuple[int, int, int]:
        """Returns H, K and Kv in a model of width D.

        Raises:
            ConfigError: if the heads do not divide the width and `key_dim` is 0.
        """
        return head_widths(D, "delta_product", "key_dim", self.heads, self.key_dim, self.value_dim)


class DeltaProduct(MatrixMemory[DeltaProductConfig]):
    """A mixer (see `arch/part.py`) with a state [K Kv] per head and several steps a token."""

    def __init__(self, D: int, cfg: DeltaProductConfig, *, key: Array, scale: float = 1.0):
        H, K, Kv = self.head_shape = cfg.head_shape(D)
        self.cfg, keys, n = cfg, jax.random.split(key, 7), cfg.householder_steps
        self.qkv = ConvHeads(D, H, (K, n * K, n * Kv), cfg.conv_width, key=keys[0])
        self.w_dt = make_matrix(keys[1], (D, H), P("data", "model"))
        self.w_gate = make_matrix(keys[2], (D, H * Kv), P("data", "model"))
        self.w_beta = make_matrix(keys[3], (D, H * n), P("data", "model"))
        self.b_dt = make_dt_bias(keys[4], H, cfg.dt)
        self.log_a = make_param(
            keys[5], (H,), P("model"), log_a_init(1e-3, 16.0), role="vector", decay=False
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
        cfg, K, n = self.cfg, self.head_shape[1], self.cfg.householder_steps
        prev = None if state is None else state.convs
        (q, k, v), convs = self.qkv(x, reset, prev, cfg.implementation)
        g = -jnp.exp(self.log_a[...]) * softplus_dt(linear(x, self.w_dt[...]), self.b_dt[...])
        beta = jax.nn.sigmoid(linear(x, self.w_beta[...]).astype(g.dtype))
        beta = 2 * beta if cfg.allow_negative_eigenvalues else beta
        k, v, beta = (
            rearrange(z, "b t h (n k) -> b t n h k", n=n)
            for z in (k, v, rearrange(beta, "b t (h n) -> b t h n", n=n))
        )
        inputs = unit_length(q) * K**-0.5, unit_length(k), v, g[..., None], beta, beta
        return run_recurrence(delta_rule, inputs, cfg, reset, state, convs)

    def gate_output(
        self, y: Float[Array, "B T C"], x: Float[Array, "B T D"]
    ) -> Float[Array, "B T C"]:
        """Returns the normed outputs times a gate for each channel."""
        return gate(y, linear(x, self.w_gate[...]), "silu")

    def init_convs(self, batch_size: int, dtype: jnp.dtype) -> tuple[Array, ...]:
        """Returns the inputs of the convolutions before the first token: zeros."""
        return self.qkv.init_state(batch_size, dtype)

    @staticmethod
    def cost(D: int, cfg: DeltaProductConfig, context: CostContext) -> PartCost:
        """Returns the cost: model FLOPs are those of decaying, reading and correcting the state."""
        shape = H, K, Kv = cfg.head_shape(D)
        n = cfg.householder_steps
        channels = H * (K + n * (K + Kv))
        terms = memory_terms(
            *(shape, 4.0 * n + 3.0, context),
            implementation=cfg.implementation,
            chunk_size=cfg.chunk_size,
            by_channel=False,
            steps=n,
        )
        return memory_cost(
            *(D, shape, context),
            matrices=D * (channels + H * Kv + H + H * n),
            vectors=2 * H + Kv,
            terms=terms,
            convs=(channels, cfg.conv_width),
        )
