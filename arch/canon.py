"""Canon layers: short causal convolutions that add to a token those before it (arXiv:2512.17351).

    h'[t] = h[t] + sum over i of w[i] h[t - W + 1 + i]

They are depthwise, without bias or activation, and stop at document boundaries. `model.block.canon`
names their points in a block: A, the input of the mixer; B, inside the mixer (attention: queries,
keys and values, before their norms and positions); C, the input of the channel; D, inside the
channel (MLP: the hidden layer and its gate, before the activation). A part with a point inside is
a `TwoStagePart`; in other parts B and D do nothing.
"""

from collections.abc import Mapping, Set
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from arch.cross_layer import CrossLayerMixer, CrossLayerOutput, LayerContext, call_mixer
from arch.layers.short_conv import ShortConv
from arch.part import Channel, Memory, Mixer
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import SequenceInfo
from arch.weighted_sum import AuxMetrics
from errors import ConfigError

POINTS = "ABCD"
Inner = tuple[Float[Array, "B T _"], ...]  # What a part convolves inside.


@runtime_checkable
class TwoStagePart(Protocol):
    """A part with a point inside: its call is `finish(project(x), x, ..)` with its arguments."""

    @staticmethod
    def inner_widths(D: int, cfg: Any) -> tuple[int, ...]:
        """Returns the widths of what `project` returns; none if the part has no such point."""

    def project(self, x: Float[Array, "B T D"]) -> Inner:
        """Computes what is convolved."""


@runtime_checkable
class TwoStageMixer(TwoStagePart, Protocol):
    """A mixer with a point inside."""

    def finish(
        self,
        inner: Inner,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        layer_context: LayerContext | None,
        *,
        state: PyTree | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> CrossLayerOutput:
        """Computes the rest of the mixer (see `CrossLayerMixer` in `arch/cross_layer.py`)."""


@runtime_checkable
class TwoStageChannel(TwoStagePart, Protocol):
    """A channel with a point inside."""

    def finish(
        self,
        inner: Inner,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], AuxMetrics]:
        """Computes the rest of the channel (see `Channel` in `arch/part.py`)."""


class CanonState(NamedTuple):
    """The decoding state of the Canon layers of a block."""

    inputs: dict[str, tuple[Float[Array, "B W-1 width"], ...]]  # Of each point.
    last_segment: Int[Array, " B"]


class CanonLayer(nnx.Module):
    """The convolutions of one point, `layer(inputs, reset, states) -> (outputs, states)`."""

    def __init__(self, widths: tuple[int, ...], conv_width: int, *, key: Array):
        self.convs = nnx.List(
            ShortConv(conv_width, width, bias=False, key=k)
            for width, k in zip(widths, jax.random.split(key, len(widths)), strict=True)
        )

    def __call__(
        self, inputs: Inner, reset: Bool[Array, "B T"], states: tuple[Array, ...] | None
    ) -> tuple[Inner, tuple[Array, ...]]:
        """Adds to each token its convolution; `states` holds the inputs before the first token."""
        prev = (None,) * len(inputs) if states is None else states
        outputs, new = [], []
        for x, conv, state in zip(inputs, self.convs, prev, strict=True):
            y, state = conv(x, reset, state, "auto")
            outputs.append(x + y)
            new.append(state)
        return tuple(outputs), tuple(new)

    def init_state(self, batch_size: int, dtype: jnp.dtype) -> tuple[Array, ...]:
        """Returns the inputs before the first token: zeros."""
        return tuple(conv.init_state(batch_size, dtype) for conv in self.convs)


class CanonCall:
    """One run of the parts of a block with its Canon layers, if it has any."""

    def __init__(
        self, layers: Mapping[str, CanonLayer], seq: SequenceInfo, state: CanonState | None
    ):
        self._layers, self._seq, self._state = layers, seq, state
        self._inputs: dict[str, tuple[Array, ...]] = {}
        self._reset = seq.resets(None if state is None else state.last_segment)

    def run_mixer(
        self,
        mixer: Mixer | CrossLayerMixer,
        x: Float[Array, "B T D"],
        layer_context: LayerContext | None,
        state: PyTree | None,
        key: Array | None,
    ) -> CrossLayerOutput:
        """Runs a mixer, with the layers at its input (A) and inside it (B)."""
        (x,) = self._convolve("A", (x,))
        if "B" not in self._layers:
            return call_mixer(mixer, x, self._seq, layer_context, state=state, key=key)
        assert isinstance(mixer, TwoStageMixer)
        inner = self._convolve("B", mixer.project(x))
        return mixer.finish(inner, x, self._seq, layer_context, state=state, key=key)

    def run_channel(
        self, channel: Channel, x: Float[Array, "B T D"], key: Array | None
    ) -> tuple[Float[Array, "B T D"], AuxMetrics]:
        """Runs a channel, with the layers at its input (C) and inside it (D)."""
        (x,) = self._convolve("C", (x,))
        if "D" not in self._layers:
            return channel(x, self._seq, key=key)
        assert isinstance(channel, TwoStageChannel)
        inner = self._convolve("D", channel.project(x))
        return channel.finish(inner, x, self._seq, key=key)

    def next_state(self) -> CanonState | None:
        """Returns the state after the run; None if it began without one."""
        if self._state is None:
            return None
        return CanonState(self._inputs, self._seq.last_segment(self._state.last_segment))

    def _convolve(self, point: str, inputs: Inner) -> Inner:
        """Convolves the inputs at a point; they stay as they are if it has no layer."""
        if point not in self._layers:
            return inputs
        prev = None if self._state is None else self._state.inputs[point]
        outputs, self._inputs[point] = self._layers[point](inputs, self._reset, prev)
        return outputs


def init_canon_state(
    layers: Mapping[str, CanonLayer], batch_size: int, dtype: jnp.dtype
) -> CanonState | None:
    """Returns the state before the first token; None if there are no layers."""
    if not layers:
        return None
    inputs = {point: layer.init_state(batch_size, dtype) for point, layer in layers.items()}
    return CanonState(inputs, jnp.zeros((batch_size,), jnp.int32))


def make_canon_layers(
    points: Mapping[str, tuple[int, ...]], conv_width: int, *, key: Array
) -> dict[str, CanonLayer]:
    """Returns the layers at `points`, which have the widths to convolve by letter."""
    return {
        point: CanonLayer(widths, conv_width, key=jax.random.fold_in(key, POINTS.index(point)))
        for point, widths in points.items()
    }


def inner_widths(part: type, D: int, cfg: object) -> tuple[int, ...]:
    """Returns the widths inside a part of this class; none if it has no point inside."""
    return part.inner_widths(D, cfg) if issubclass(part, TwoStagePart) else ()


def point_widths(
    canon: str, D: int, mixer: tuple[int, ...], channel: tuple[int, ...], has_channel: bool
) -> dict[str, tuple[int, ...]]:
    """Returns what is convolved at each of the points that a block has, by letter.

    Args:
        canon: the letters of the points.
        D: the width of the model.
        mixer: the widths inside the mixer.
        channel: the widths inside the channel.
        has_channel: whether the block has a channel.
    """
    widths = {"A": (D,), "B": mixer, "C": (D,) * has_channel, "D": channel}
    return {point: widths[point] for point in POINTS if point in canon and widths[point]}


def check_points(canon: str, points: Set[str]) -> None:
    """Checks that each point in the setting `canon` is one of the `points` that layers have.

    Raises:
        ConfigError: if one is not.
    """
    if missing := "".join(point for point in canon if point not in points):
        raise ConfigError(
            f"model.block.canon {canon!r} has {missing}, which no layer has: B is inside "
            "attention, C before a channel, D inside mlp; leave it out"
        )


def canon_cost(
    points: Mapping[str, tuple[int, ...]], conv_width: int, context: CostContext
) -> PartCost:
    """Returns the cost of the Canon layers of one block."""
    width = sum(sum(widths) for widths in points.values())
    params, flops = conv_width * width, 2.0 * conv_width * width
    terms = {"conv": TermFlops(flops, flops, elementwise=True)} if width else {}
    return PartCost(params, params, terms, (conv_width - 1) * width * context.itemsize)
