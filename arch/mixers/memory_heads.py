"""What the mixers with a matrix memory share: heads with convolutions, gates, and costs."""

import math
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from arch.layers.activations import activate
from arch.layers.linear import linear
from arch.layers.norms import rms_norm
from arch.layers.short_conv import ShortConv
from arch.links import Links, LinkSpec
from arch.part import Memory
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import CAUSAL_ONLY, SequenceInfo, View
from arch.sharding import P, make_matrix, make_vector
from errors import ConfigError
from ops.recompute import recompute
from ops.recurrent.channel_decay import halvings
from ops.recurrent.gla import gla


class MemoryConfig(Protocol):
    """What the base of mixers with a matrix memory reads of their settings."""

    @property
    def norm_eps(self) -> float:
        """The number added to the mean square in the output norm."""

    def head_shape(self, D: int) -> tuple[int, int, int]:
        """Returns H, K and Kv in a model of width D."""


C = TypeVar("C", bound=MemoryConfig)


class MemoryState(NamedTuple):
    """The decoding state of a mixer with a matrix memory."""

    convs: tuple[Array, ...]  # States of the convolutions, [B width-1 ..] each.
    state: Float[Array, "B H K Kv"]
    last_segment: Int[Array, " B"]  # Segment of the last token.


class MatrixMemory(nnx.Module, Generic[C]):
    """The base of mixers with a state [K Kv] per head, which the outputs read.

    A subclass has the parameters `norm` ([Kv], or [H Kv] to norm all heads together) and `w_out`
    [H Kv, D], and defines `update` and `gate_output`, `init_convs` if it has convolutions, and
    `links` if it needs any.
    """

    cfg: C
    head_shape: tuple[int, int, int]  # H, K and Kv.
    norm: nnx.Param
    w_out: nnx.Param

    def update(
        self,
        x: Float[Array, "B T D"],
        reset: Bool[Array, "B T"],
        state: MemoryState | None,
        links: Links | None,
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

    def links(self) -> LinkSpec | None:
        """Returns what the layers exchange; a subclass may define it."""
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
        y, _, state = self.call_linked(x, seq, None, state=state)
        return y, state

    def call_linked(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        links: Links | None,
        *,
        state: MemoryState | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Links | None, MemoryState | None]:
        """Updates and reads the memory in each document, as the layer of its stack."""
        reset = seq.resets(None if state is None else state.last_segment)
        y, convs, new_state = self.update(x, reset, state, links)
        per_head, eps = self.norm.shape[-1] == y.shape[-1], self.cfg.norm_eps
        y = rms_norm(y, self.norm[...], eps) if per_head else y
        y = rearrange(y, "b t h v -> b t (h v)")
        y = y if per_head else rms_norm(y, self.norm[...], eps)
        y = linear(self.gate_output(y, x), self.w_out[...])
        if state is None:
            return y, links, None
        return y, links, MemoryState(convs, new_state, seq.last_segment(state.last_segment))

    def init_state(self, batch_size: int, max_length: int, dtype: jnp.dtype) -> MemoryState:
        """Returns an empty state for `batch_size` rows."""
        state = jnp.zeros((batch_size, *self.head_shape), jnp.promote_types(dtype, jnp.float32))
        convs = self.init_convs(batch_size, dtype)
        return MemoryState(convs, state, jnp.zeros((batch_size,), jnp.int32))

    @staticmethod
    def supported_views(cfg: C) -> dict[View, str]:
        """Returns the causal views, since it reads rows in one direction."""
        return CAUSAL_ONLY

    @staticmethod
    def tp_dims(D: int, cfg: C) -> dict[str, int]:
        """Returns the dimensions that tensor parallelism splits."""
        return {"heads": cfg.head_shape(D)[0]}


class LinearAttentionConfig(MemoryConfig, Protocol):
    """What mixers with the operation of gated linear attention read of their settings."""

    @property
    def chunk_size(self) -> int:
        """The largest number of tokens in a chunk."""

    @property
    def implementation(self) -> Literal["auto", "reference", "xla"]:
        """The implementation of the operation."""


def run_linear_attention(
    cfg: LinearAttentionConfig,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H Kv"],
    g: Float[Array, "B T H C"],
    reset: Bool[Array, "B T"],
    state: MemoryState | None,
) -> tuple[Float[Array, "B T H Kv"], tuple[Array, ...], Float[Array, "B H K Kv"]]:
    """Returns what `MatrixMemory.update` returns, by `ops.recurrent.gla`, without convolutions."""
    y, new_state = gla(
        *(q, k, v, g),
        reset=reset,
        state=None if state is None else state.state,
        chunk_size=cfg.chunk_size,
        implementation=cfg.implementation,
    )
    return y, (), new_state


def linear_attention_terms(
    D: int, cfg: LinearAttentionConfig, context: CostContext, *, by_channel: bool
) -> dict[str, TermFlops]:
    """Returns the FLOPs of the recurrence: 5 K Kv a head to decay, to write and to read."""
    return memory_terms(
        *(cfg.head_shape(D), 5.0, context),
        implementation=cfg.implementation,
        chunk_size=cfg.chunk_size,
        by_channel=by_channel,
        solves=False,
    )


class ConvHeads(nnx.Module):
    """Projections to heads, each followed by a short convolution and SiLU."""

    def __init__(self, D: int, H: int, widths: tuple[int, ...], conv_width: int, *, key: Array):
        keys = jax.random.split(key, 2 * len(widths))
        self.H = H
        self.matrices = nnx.List(
            make_matrix(k, (D, H * width), P("data", "model"))
            for k, width in zip(keys[::2], widths, strict=True)
        )
        self.convs = nnx.List(
            ShortConv(conv_width, H * width, bias=False, key=k)
            for k, width in zip(keys[1::2], widths, strict=True)
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        reset: Bool[Array, "B T"],
        states: tuple[Array, ...] | None,
        implementation: str,
    ) -> tuple[list[Float[Array, "B T H width"]], tuple[Array, ...]]:
        """Returns the heads of each projection, and the new states of the convolutions."""
        prev = (None,) * len(self.convs) if states is None else states
        heads, new = [], []
        for w, conv, state in zip(self.matrices, self.convs, prev, strict=True):
            y, state = conv(linear(x, w[...]), reset, state, implementation)
            heads.append(rearrange(activate(y, "silu"), "b t (h k) -> b t h k", h=self.H))
            new.append(state)
        return heads, tuple(new)

    def init_state(self, batch_size: int, dtype: jnp.dtype) -> tuple[Array, ...]:
        """Returns the inputs before the first token: zeros."""
        return tuple(conv.init_state(batch_size, dtype) for conv in self.convs)


class LowRank(nnx.Module):
    """A linear map through a narrow layer, `y = (x w_down) w_up + bias`."""

    def __init__(self, D: int, rank: int, width: int, *, key: Array, bias: float | None = None):
        keys = jax.random.split(key)
        self.w_down = make_matrix(keys[0], (D, rank), P("data", None))
        self.w_up = make_matrix(keys[1], (rank, width), P(None, "model"))
        self.bias = None if bias is None else make_vector(width, bias)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T C"]:
        """Maps each token."""
        bias = None if self.bias is None else self.bias[...]
        return linear(linear(x, self.w_down[...]), self.w_up[...], bias)


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


@recompute
def unit_length(x: Float[Array, "B T H K"]) -> Float[Array, "B T H K"]:
    """Computes x / sqrt(|x|^2 + 1e-6)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype)


def memory_cost(
    D: int,
    shape: tuple[int, int, int],
    context: CostContext,
    *,
    matrices: int,
    vectors: int,
    terms: dict[str, TermFlops],
    convs: tuple[int, int] = (0, 0),
) -> PartCost:
    """Returns the cost of a mixer with a matrix memory, which every token uses completely.

    Args:
        D: width of the model.
        shape: H, K and Kv.
        context: the conditions of use.
        matrices: parameters that multiply the input, without the convolutions.
        vectors: all other parameters but those of convolutions and `w_out`.
        terms: the FLOPs of the recurrence (see `memory_terms`).
        convs: channels and width of the convolutions.
    """
    (H, K, Kv), (channels, width) = shape, convs
    out, conv = H * Kv * D, width * channels
    parts = {"in": TermFlops(2.0 * matrices, 2.0 * matrices)}
    if channels:
        parts["conv"] = TermFlops(2.0 * conv, 2.0 * conv, elementwise=True)
    parts["out"] = TermFlops(2.0 * out, 2.0 * out)
    params = matrices + conv + vectors + out
    state = 4 * H * K * Kv + context.itemsize * max(width - 1, 0) * channels
    return PartCost(params, params, parts | terms, state)


def memory_terms(
    shape: tuple[int, int, int],
    model: float,
    context: CostContext,
    *,
    implementation: str,
    chunk_size: int,
    by_channel: bool,
    steps: int = 1,
    solves: bool = True,
) -> dict[str, TermFlops]:
    """Returns the FLOPs of the recurrence: `model` K Kv in each head, and those of its chunks.

    Args:
        shape: H, K and Kv.
        model: model FLOPs for each number of the state.
        context: the length of the rows.
        implementation: "reference", or another name for the chunked form.
        chunk_size: largest number of steps in a chunk.
        by_channel: whether each channel of a key has its own decay.
        steps: steps of each token.
        solves: whether the delta rule erases, so that a triangular system is solved.
    """
    H, K, Kv = shape
    core = model * H * K * Kv
    if implementation == "reference":
        return {"core": TermFlops(core, core, elementwise=True)}
    Q = max(min(chunk_size, steps * context.length), 1)
    halved = halvings(Q)
    decayed = (2.0 + 2.0 * solves) * Q * K * (halved if by_channel else 1)
    sums = 2.0 * Q * K * (halved + 2) * by_channel
    chunked = steps * H * ((4.0 + 2.0 * solves) * K * Kv + decayed + sums + 2.0 * Q * Kv)
    terms = {"core": TermFlops(core, chunked, batched=True)}
    if solves:
        # The inverse is built from blocks whose size doubles.
        doublings = max(math.ceil(math.log2(Q)) - 1, 0)
        solve = steps * H * (2.0 * Q * (K + Kv) + 4.0 * Q**2 * doublings)
        terms["solve"] = TermFlops(0.0, solve, batched=True)
    return terms
