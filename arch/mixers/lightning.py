"""The lightning attention mixer: linear attention with a constant decay a head (arXiv:2401.04658).

Each of H heads has a state [K K], which every token decays by the same factor. The factors follow
one of two published tables, by head and by the place of the layer in its stack. Queries, keys and
values have SiLU; the output has one norm over all heads and a sigmoid gate (MiniMax-01,
arXiv:2501.08313).
"""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from arch.cross_layer import CrossLayerSpec, LayerContext
from arch.layers.activations import activate
from arch.layers.linear import linear
from arch.mixers.matrix_memory import MatrixMemory, MemoryState, head_widths, run_recurrence
from arch.mixers.memory_cost import linear_attention_terms, memory_cost
from arch.part_cost import CostContext, PartCost
from arch.sharding import P, make_matrix, make_vector
from ops.recurrent.gla import gla, lightning_slopes
from settings.types import NonNegativeInt, PositiveFloat, PositiveInt, config


@config
class LightningConfig:
    """The lightning attention mixer."""

    scaled_fields: ClassVar[tuple[str, ...]] = ("heads",)
    knob_fields: ClassVar[tuple[str, ...]] = ()

    heads: PositiveInt = 4  # Number of heads (H).
    head_dim: NonNegativeInt = 0  # Width of a head (K); 0: D / H.
    # Table of the decays of heads and layers (TransNormerLLM, whose first head keeps everything,
    # arXiv:2307.14995; MiniMax-01).
    slopes: Literal["minimax", "transnormer"] = "minimax"
    chunk_size: PositiveInt = 64  # Tokens per chunk of the chunked algorithm (Q).
    norm_eps: PositiveFloat = 1e-6  # Number added to the mean square in the output norm.
    # Implementation of the operation; auto: chosen by platform.
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def head_shape(self, D: int) -> tuple[int, int, int]:
        """Returns H and twice K in a model of width D.

        Raises:
            ConfigError: if the heads do not divide the width and `head_dim` is 0.
        """
        return head_widths(D, "lightning", "head_dim", self.heads, self.head_dim, 0)


class Lightning(MatrixMemory[LightningConfig]):
    """A mixer (see `arch/part.py`) with a state [K K] per head that decays by a constant."""

    def __init__(self, D: int, cfg: LightningConfig, *, key: Array, scale: float = 1.0):
        H, K, _ = self.head_shape = cfg.head_shape(D)
        self.cfg, keys = cfg, jax.random.split(key, 5)
        self.w_q = make_matrix(keys[0], (D, H * K), P("data", "model"))
        self.w_k = make_matrix(keys[1], (D, H * K), P("data", "model"))
        self.w_v = make_matrix(keys[2], (D, H * K), P("data", "model"))
        self.w_gate = make_matrix(keys[3], (D, H * K), P("data", "model"))
        self.norm = make_vector(H * K, 1.0)
        self.w_out = make_matrix(keys[4], (H * K, D), P("model", "data"), scale)

    def cross_layer_spec(self) -> CrossLayerSpec:
        """Returns an empty spec: the mixer reads the number of its layer alone."""
        return CrossLayerSpec()

    def update(
        self,
        x: Float[Array, "B T D"],
        reset: Bool[Array, "B T"],
        state: MemoryState | None,
        layer_context: LayerContext | None,
    ) -> tuple[Float[Array, "B T H K"], tuple[Array, ...], Float[Array, "B H K K"]]:
        """Runs the recurrence over each document, from `state` if there is one."""
        cfg, (H, _, _) = self.cfg, self.head_shape
        q, k, v = (
            rearrange(activate(linear(x, w[...]), "silu"), "b t (h k) -> b t h k", h=H)
            for w in (self.w_q, self.w_k, self.w_v)
        )
        wide = jnp.promote_types(x.dtype, jnp.float32)
        depth = 1 if layer_context is None else layer_context.depth
        table = np.stack([lightning_slopes(n, depth, H, cfg.slopes) for n in range(depth)])
        slopes = jnp.asarray(table, wide)[0 if layer_context is None else layer_context.layer]
        g = jnp.broadcast_to(-slopes[:, None], (*q.shape[:3], 1))
        return run_recurrence(gla, (q, k, v, g), cfg, reset, state)

    def gate_output(
        self, y: Float[Array, "B T C"], x: Float[Array, "B T D"]
    ) -> Float[Array, "B T C"]:
        """Returns the normed outputs times a gate for each channel."""
        return y * jax.nn.sigmoid(linear(x, self.w_gate[...]))

    @staticmethod
    def cost(D: int, cfg: LightningConfig, context: CostContext) -> PartCost:
        """Returns the cost: model FLOPs are those of decaying, reading and writing the state."""
        shape = H, K, _ = cfg.head_shape(D)
        terms = linear_attention_terms(D, cfg, context, by_channel=False)
        return memory_cost(*(D, shape, context), matrices=4 * D * H * K, vectors=H * K, terms=terms)
