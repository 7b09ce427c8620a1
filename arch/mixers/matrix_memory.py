"""The base of mixers with a matrix memory: its state, its reset and its norm of what is read.

Their costs are in `arch/mixers/memory_cost.py`, their convolutions in `arch/layers/short_conv.py`.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from arch.cross_layer import CrossLayerSpec, LayerContext
from arch.layers.linear import linear
from arch.layers.norms import rms_norm
from arch.mixers.memory_cost import LinearAttentionConfig, MemoryConfig
from arch.part import Memory
from arch.sequence import CAUSAL_ONLY, SequenceInfo, View
from errors import ConfigError

Config = TypeVar("Config", bound=MemoryConfig)


class MemoryState(NamedTuple):
    """The decoding state of a mixer with a matrix memory."""

    convs: tuple[Array, ...]  # States of the convolutions, [B width-1 ..] each.
    state: Float[Array, "B H K Kv"]
    last_segment: Int[Array, " B"]  # Segment of the last token.


class MatrixMemory(nnx.Module, Generic[Config]):
    """The base of mixers with a state [K Kv] per head, which the outputs read.

    A subclass has the parameters `norm` ([Kv], or [H Kv] to norm all heads together) and `w_out`
    [H Kv, D], and defines `update` and `gate_output`, `init_convs` if it has convolutions, and
    `cross_layer_spec` if it reads other layers.
    """

    cfg: Config
    head_shape: tuple[int, int, int]  # H, K and Kv.
    norm: nnx.Param
    w_out: nnx.Param

    def update(
        self,
        x: Float[Array, "B T D"],
        reset: Bool[Array, "B T"],
        state: MemoryState | None,
        layer_context: LayerContext | None,
    ) -> tuple[Float[Array, "B T H Kv"], tuple[Array, ...], Float[Array, "B H K Kv"]]:
        """Returns what each token reads, the new states of the convolutions, and of the memory.

        Raises:
            NotImplementedError: always; a subclass defines it.
        """
        raise NotImplementedError

    def gate_output(
        self, y: Float[Array, "B T C"], x: Float[Array, "B T D"]
    ) -> Float[Array, "B T C"]:
        """Returns the normed outputs of all heads times a gate that x decides.

        Raises:
            NotImplementedError: always; a subclass defines it.
        """
        raise NotImplementedError

    def init_convs(self, batch_size: int, dtype: jnp.dtype) -> tuple[Array, ...]:
        """Returns the states of the convolutions before the first token."""
        return ()

    def cross_layer_spec(self) -> CrossLayerSpec | None:
        """Returns what the layer shares; a subclass may define it."""
        return None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        state: MemoryState | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], MemoryState | None]:
        """Updates and reads the memory in each document, from `state` if there is one."""
        y, _, state = self.call_in_stack(x, seq, None, state=state)
        return y, state

    def call_in_stack(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        layer_context: LayerContext | None,
        *,
        state: MemoryState | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerContext | None, MemoryState | None]:
        """Updates and reads the memory in each document, as the layer of its stack."""
        reset = seq.resets(None if state is None else state.last_segment)
        y, convs, new_state = self.update(x, reset, state, layer_context)
        per_head, eps = self.norm.shape[-1] == y.shape[-1], self.cfg.norm_eps
        y = rms_norm(y, self.norm[...], eps) if per_head else y
        y = rearrange(y, "b t h v -> b t (h v)")
        y = y if per_head else rms_norm(y, self.norm[...], eps)
        y = linear(self.gate_output(y, x), self.w_out[...])
        if state is None:
            return y, layer_context, None
        return y, layer_context, MemoryState(convs, new_state, seq.last_segment(state.last_segment))

    def init_state(self, batch_size: int, max_length: int, dtype: jnp.dtype) -> MemoryState:
        """Returns an empty state for `batch_size` rows."""
        state = jnp.zeros((batch_size, *self.head_shape), jnp.promote_types(dtype, jnp.float32))
        convs = self.init_convs(batch_size, dtype)
        return MemoryState(convs, state, jnp.zeros((batch_size,), jnp.int32))

    @staticmethod
    def supported_views(cfg: Config) -> dict[View, str]:
        """Returns the causal views, since it reads rows in one direction."""
        return CAUSAL_ONLY

    @staticmethod
    def tp_dims(D: int, cfg: Config) -> dict[str, int]:
        """Returns the dimensions that tensor parallelism splits."""
        return {"heads": cfg.head_shape(D)[0]}


def run_recurrence(
    recurrence: Callable[..., tuple[Array, Array]],
    inputs: tuple[Array, ...],
    cfg: LinearAttentionConfig,
    reset: Bool[Array, "B T"],
    state: MemoryState | None,
    convs: tuple[Array, ...] = (),
) -> tuple[Float[Array, "B T H Kv"], tuple[Array, ...], Float[Array, "B H K Kv"]]:
    """Runs a recurrence from a state, and returns what `MatrixMemory.update` returns.

    Args:
        recurrence: `delta_rule` or `gla` of `ops/recurrent`.
        inputs: its tensors for each token: q, k, v, g, and the gates of the delta rule.
        cfg: the settings of the mixer.
        reset: whether a token is the first of its document.
        state: the state before the first token; None: 0.
        convs: the new states of the convolutions.
    """
    y, new_state = recurrence(
        *inputs,
        reset=reset,
        state=None if state is None else state.state,
        chunk_size=cfg.chunk_size,
        implementation=cfg.implementation,
    )
    return y, convs, new_state


def head_widths(
    D: int, section: str, setting: str, H: int, first: int, second: int
) -> tuple[int, int, int]:
    """Returns H and two widths of a head: a `first` of 0 means D / H, a `second` of 0 the first.

    Raises:
        ConfigError: if the heads do not divide the width and `first` (named `setting`) is 0.
    """
    if not first and D % H:
        nearest = max(D // H, 1)
        raise ConfigError(
            f"model.width {D} is not a multiple of {section}.heads {H}; "
            f"set {section}.{setting}, nearest valid value: {nearest}"
        )
    first = first or D // H
    return H, first, second or first


def check_rank(D: int, setting: str, rank: int) -> None:
    """Refuses a map of low rank through a layer that is wider than the model.

    Raises:
        ConfigError: if the rank is above the width.
    """
    if rank > D:
        raise ConfigError(f"{setting} {rank} is above model.width {D}; nearest valid value: {D}")
