"""The Gated DeltaNet mixer: the delta rule with a decay (arXiv:2412.06464, section 3).

Each of H heads has a state [K Kv]. A token decays the state, removes the value at its key, and
writes its own value there. With `allow_negative_eigenvalues` the eigenvalues of the transition
reach down to -1 (arXiv:2411.12537), which state tracking needs. With `key_heads`, several heads
share one query and one key (Qwen3-Next). Without `decay` and `output_gate` it is DeltaNet
(arXiv:2406.06484).
"""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from arch.cross_layer import LayerContext
from arch.layers.activations import gate
from arch.layers.dt import DtConfig, log_a_init, make_dt_bias, softplus_dt
from arch.layers.linear import linear
from arch.layers.norms import unit_length
from arch.layers.short_conv import ShortConv, conv_heads
from arch.mixers.matrix_memory import MatrixMemory, MemoryState, run_recurrence
from arch.mixers.memory_cost import memory_cost, memory_terms
from arch.part_cost import CostContext, PartCost
from arch.sharding import P, make_matrix, make_param, make_vector
from errors import ConfigError
from ops.recurrent.delta_rule import delta_rule
from settings.types import NonNegativeInt, PositiveFloat, PositiveInt, check_divides, config


@config
class GatedDeltaNetConfig:
    """The Gated DeltaNet mixer."""

    knob_fields: ClassVar[tuple[str, ...]] = ()

    heads: PositiveInt = 4  # Number of heads (H).
    # Number of heads of queries and keys (G), which divides the heads; 0: as many as heads.
    key_heads: NonNegativeInt = 0
    key_dim: NonNegativeInt = 0  # Width of a head's keys (K); 0: 3/4 D / H.
    value_dim: NonNegativeInt = 0  # Width of a head's values (Kv); 0: 2 K.
    conv_width: PositiveInt = 4  # Width of the convolutions, in tokens.
    decay: bool = True  # Decay the state by a factor that each token decides (DeltaNet: no).
    output_gate: bool = True  # Multiply the normed outputs by a gate (DeltaNet: no).
    # Let eigenvalues of the transition lie in [-1, 1] instead of [0, 1].
    allow_negative_eigenvalues: bool = False
    chunk_size: PositiveInt = 64  # Tokens per chunk of the chunked algorithm (Q).
    norm_eps: PositiveFloat = 1e-6  # Number added to the mean square in the output norm.
    dt: DtConfig = DtConfig()
    # Implementation of the operation; auto: chosen by platform.
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def check(self) -> None:
        """Checks the number of heads of keys.

        Raises:
            ConfigError: if it does not divide the number of heads.
        """
        if self.key_heads:
            check_divides(
                "gated_deltanet.key_heads", self.key_heads, "gated_deltanet.heads", self.heads
            )

    @property
    def scaled_fields(self) -> tuple[str, ...]:
        """The fields that are proportional to the model's width; a single key head is not."""
        return ("heads", "key_heads") if self.key_heads > 1 else ("heads",)

    def head_shape(self, D: int) -> tuple[int, int, int]:
        """Returns H, K and Kv in a model of width D.

        Raises:
            ConfigError: if 3/4 of the width is not a multiple of the heads and `key_dim` is 0.
        """
        H = self.heads
        if not self.key_dim and 3 * D % (4 * H):
            nearest = max(3 * D // (4 * H), 1)
            raise ConfigError(
                f"3/4 of model.width {D} is not a multiple of gated_deltanet.heads {H}; "
                f"set gated_deltanet.key_dim, nearest valid value: {nearest}"
            )
        K = self.key_dim or 3 * D // (4 * H)
        return H, K, self.value_dim or 2 * K


class GatedDeltaNet(MatrixMemory[GatedDeltaNetConfig]):
    """A mixer (see `arch/part.py`) with a state [K Kv] per head, updated by the delta rule."""

    def __init__(self, D: int, cfg: GatedDeltaNetConfig, *, key: Array, scale: float = 1.0):
        H, K, Kv = self.head_shape = cfg.head_shape(D)
        self.cfg, keys = cfg, jax.random.split(key, 12)
        G = cfg.key_heads or H
        self.w_q = make_matrix(keys[0], (D, G * K), P("data", "model"))
        self.w_k = make_matrix(keys[1], (D, G * K), P("data", "model"))
        self.w_v = make_matrix(keys[2], (D, H * Kv), P("data", "model"))
        if cfg.output_gate:
            self.w_gate = make_matrix(keys[3], (D, H * Kv), P("data", "model"))
        self.w_beta = make_matrix(keys[4], (D, H), P("data", "model"))
        self.convs = nnx.List(
            ShortConv(cfg.conv_width, width, bias=False, key=k)
            for width, k in zip((G * K, G * K, H * Kv), keys[6:9], strict=True)
        )
        if cfg.decay:
            self.w_dt = make_matrix(keys[5], (D, H), P("data", "model"))
            self.b_dt = make_dt_bias(keys[9], H, cfg.dt)
            self.log_a = make_param(
                keys[10], (H,), P("model"), log_a_init(1e-3, 16.0), role="vector", decay=False
            )
        self.norm = make_vector(Kv, 1.0)
        self.w_out = make_matrix(keys[11], (H * Kv, D), P("model", "data"), scale)

    def update(
        self,
        x: Float[Array, "B T D"],
        reset: Bool[Array, "B T"],
        state: MemoryState | None,
        layer_context: LayerContext | None,
    ) -> tuple[Float[Array, "B T H Kv"], tuple[Array, ...], Float[Array, "B H K Kv"]]:
        """Runs the recurrence over each document, from `state` if there is one."""
        cfg, (H, K, Kv) = self.cfg, self.head_shape
        matrices = self.w_q, self.w_k, self.w_v
        prev_convs = None if state is None else state.convs
        (q, k, v), convs = conv_heads(
            x, matrices, self.convs, (K, K, Kv), reset, prev_convs, cfg.implementation
        )
        sharing = H // (cfg.key_heads or H)
        q, k = (jnp.repeat(unit_length(y), sharing, axis=2) for y in (q, k))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        beta = jax.nn.sigmoid(linear(x, self.w_beta[...]).astype(wide))
        beta = ((2 * beta) if cfg.allow_negative_eigenvalues else beta)[..., None]
        g = self._log_decay(x)[..., None] if cfg.decay else jnp.zeros_like(beta)
        inputs = q * K**-0.5, k, v, g, beta, beta
        return run_recurrence(delta_rule, inputs, cfg, reset, state, convs)

    def gate_output(
        self, y: Float[Array, "B T C"], x: Float[Array, "B T D"]
    ) -> Float[Array, "B T C"]:
        """Returns the normed outputs times a gate for each channel, if there is one."""
        return gate(y, linear(x, self.w_gate[...]), "silu") if self.cfg.output_gate else y

    def _log_decay(self, x: Float[Array, "B T D"]) -> Float[Array, "B T H"]:
        dt = softplus_dt(linear(x, self.w_dt[...]), self.b_dt[...])
        return -jnp.exp(self.log_a[...]) * dt

    def init_convs(self, batch_size: int, dtype: jnp.dtype) -> tuple[Array, ...]:
        """Returns the inputs of the convolutions before the first token: zeros."""
        return tuple(conv.init_state(batch_size, dtype) for conv in self.convs)

    @staticmethod
    def tp_dims(D: int, cfg: GatedDeltaNetConfig) -> dict[str, int]:
        """Returns the dimensions that tensor parallelism splits."""
        cfg.head_shape(D)
        return {"heads": cfg.heads} | ({"key_heads": cfg.key_heads} if cfg.key_heads else {})

    @staticmethod
    def cost(D: int, cfg: GatedDeltaNetConfig, context: CostContext) -> PartCost:
        """Returns the cost: model FLOPs are those of decaying, reading and correcting the state.

        Executed FLOPs are those of the chunked algorithm, or of the recurrence for `reference`.
        """
        shape = H, K, Kv = cfg.head_shape(D)
        channels = 2 * (cfg.key_heads or H) * K + H * Kv
        terms = memory_terms(
            *(shape, 6.0 + cfg.decay, context),
            implementation=cfg.implementation,
            chunk_size=cfg.chunk_size,
            by_channel=False,
        )
        return memory_cost(
            *(D, shape, context),
            matrices=D * (channels + cfg.output_gate * H * Kv + (1 + cfg.decay) * H),
            vectors=2 * H * cfg.decay + Kv,
            terms=terms,
            convs=(channels, cfg.conv_width),
        )
