"""The HGRN-2 mixer: a matrix memory whose forget gates have a bound (arXiv:2404.07904).

Each of H heads has a state [K Kv]. The forget gate of a channel is f = lb + (1 - lb) sigmoid(x w)
and writes with the key 1 - f, so that the operation is gated linear attention. The bound lb rises
with the layers that have this mixer, from 0 in the first: it is learned by all of them together
(HGRN, arXiv:2311.04823, section 3.2).
"""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from arch.cross_layer import CrossLayerSpec, LayerContext
from arch.layers.activations import activate
from arch.layers.linear import linear
from arch.mixers.matrix_memory import MatrixMemory, MemoryState, head_widths, run_recurrence
from arch.mixers.memory_cost import linear_attention_terms, memory_cost
from arch.part_cost import CostContext, PartCost
from arch.sharding import P, make_matrix, make_vector
from ops.recurrent.gla import gla
from settings.types import NonNegativeInt, PositiveFloat, PositiveInt, config

BOUNDS = "bounds"  # Name of the rows that the layers show each other.


@config
class Hgrn2Config:
    """The HGRN-2 mixer."""

    scaled_fields: ClassVar[tuple[str, ...]] = ("heads",)
    knob_fields: ClassVar[tuple[str, ...]] = ()

    heads: PositiveInt = 4  # Number of heads (H).
    key_dim: NonNegativeInt = 0  # Width of a head's forget gates (K); 0: D / H.
    value_dim: NonNegativeInt = 0  # Width of a head's values (Kv); 0: K.
    chunk_size: PositiveInt = 64  # Tokens per chunk of the chunked algorithm (Q).
    norm_eps: PositiveFloat = 1e-6  # Number added to the mean square in the output norm.
    # Implementation of the operation; auto: chosen by platform.
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def head_shape(self, D: int) -> tuple[int, int, int]:
        """Returns H, K and Kv in a model of width D.

        Raises:
            ConfigError: if the heads do not divide the width and `key_dim` is 0.
        """
        return head_widths(D, "hgrn2", "key_dim", self.heads, self.key_dim, self.value_dim)


class Hgrn2(MatrixMemory[Hgrn2Config]):
    """A mixer (see `arch/part.py`) with a state [K Kv] per head and bounded forget gates."""

    def __init__(self, D: int, cfg: Hgrn2Config, *, key: Array, scale: float = 1.0):
        H, K, Kv = self.head_shape = cfg.head_shape(D)
        self.cfg, keys = cfg, jax.random.split(key, 4)
        self.w_q = make_matrix(keys[0], (D, H * K), P("data", "model"))
        self.w_forget = make_matrix(keys[1], (D, H * K), P("data", "model"))
        self.w_v = make_matrix(keys[2], (D, H * Kv), P("data", "model"))
        self.bound = make_vector(H * K, 0.0)  # This layer's row of the bounds' logits.
        self.norm = make_vector(H * Kv, 1.0)
        self.w_out = make_matrix(keys[3], (H * Kv, D), P("model", "data"), scale)

    def cross_layer_spec(self) -> CrossLayerSpec:
        """Returns this layer's row of the bounds' logits."""
        return CrossLayerSpec(params={BOUNDS: self.bound[...]})

    def update(
        self,
        x: Float[Array, "B T D"],
        reset: Bool[Array, "B T"],
        state: MemoryState | None,
        layer_context: LayerContext | None,
    ) -> tuple[Float[Array, "B T H Kv"], tuple[Array, ...], Float[Array, "B H K Kv"]]:
        """Runs the recurrence over each document, from `state` if there is one."""
        cfg, (H, _, _) = self.cfg, self.head_shape
        wide = jnp.promote_types(x.dtype, jnp.float32)
        raw = linear(x, self.w_forget[...]).astype(wide)
        bound = jnp.zeros((), wide)
        if layer_context is not None:
            bound = lower_bound(
                layer_context.params[BOUNDS].astype(wide), layer_context.index(BOUNDS)
            )
        # 1 - f, from which both f and its logarithm are exact where f is near 1.
        key = (1 - bound) * jax.nn.sigmoid(-raw)
        q = activate(linear(x, self.w_q[...]), "silu")
        q, k, v, g = (
            rearrange(z, "b t (h k) -> b t h k", h=H)
            for z in (q, key.astype(x.dtype), linear(x, self.w_v[...]), log_forget(raw, bound))
        )
        return run_recurrence(gla, (q, k, v, g), cfg, reset, state)

    def gate_output(
        self, y: Float[Array, "B T C"], x: Float[Array, "B T D"]
    ) -> Float[Array, "B T C"]:
        """Returns the normed outputs, whose gate is the query."""
        return y

    @staticmethod
    def cost(D: int, cfg: Hgrn2Config, context: CostContext) -> PartCost:
        """Returns the cost: model FLOPs are those of decaying, reading and writing the state."""
        shape = H, K, Kv = cfg.head_shape(D)
        terms = linear_attention_terms(D, cfg, context, by_channel=True)
        return memory_cost(
            *(D, shape, context),
            matrices=D * H * (2 * K + Kv),
            vectors=H * (K + Kv),
            terms=terms,
        )


def lower_bound(logits: Float[Array, "layers C"], index: Int[Array, ""]) -> Float[Array, " C"]:
    """Computes the bound of layer `index`: the sum of softmax(logits) over layers 1 to `index`."""
    layers = jnp.arange(logits.shape[0])[:, None]
    shares = jax.nn.softmax(logits, axis=0)
    return jnp.sum(jnp.where((layers >= 1) & (layers <= index), shares, 0), axis=0)


def log_forget(raw: Float[Array, "..."], bound: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes log(bound + (1 - bound) sigmoid(raw)) without rounding where it is near 0.

    It is log sigmoid(raw) + log(1 + bound exp(-raw)), and log(bound) dominates for small raw.
    """
    safe = jnp.where(bound > 0, bound, 1)
    low = jnp.where(bound > 0, jnp.log(safe), -jnp.inf)
    return jax.nn.log_sigmoid(raw) + jnp.logaddexp(0.0, low - raw)
