"""Cross-layer connections: what a mixer reads of the other layers of its stack.

A `CrossLayerMixer` reads its place in the stack. It may share a value of each token with later
layers (attention: the values of the first layer, arXiv:2410.17897), and a parameter with all layers
(HGRN-2: the bounds of all layers, arXiv:2404.07904). `LayerContext` holds these for one layer; the
stack carries it from block to block, also through its scan. Other mixers never see it.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from arch.part import Memory, Mixer
from arch.sequence import SequenceInfo
from arch.sharding import BATCH_AXES, P, constrain


class CrossLayerSpec(NamedTuple):
    """What one mixer shares with other layers, by name; empty if it reads its place alone."""

    # The shape of a value of each token, which later layers with this name read.
    values: dict[str, tuple[int, ...]] = {}  # noqa: RUF012
    # A parameter that all layers with this name read; [repeats ...] if the mixer is stacked.
    params: dict[str, Array] = {}  # noqa: RUF012

    def with_prefix(self, prefix: str) -> "CrossLayerSpec":
        """Returns the same with `prefix` before each name."""
        return CrossLayerSpec(
            {prefix + name: shape for name, shape in self.values.items()},
            {prefix + name: param for name, param in self.params.items()},
        )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["layer", "values", "params"],
    meta_fields=["depth", "layers"],
)
@dataclasses.dataclass(frozen=True)
class LayerContext:
    """What a mixer reads of the other layers of its stack; it is a pytree."""

    layer: Int[Array, ""]  # Number of the layer in the stack, from 0.
    values: dict[str, Float[Array, "B T ..."]]  # From earlier layers; 0 in the first with a name.
    params: dict[str, Float[Array, "layers ..."]]  # Of all layers with a name, in their order.
    depth: int  # Number of layers of the stack.
    layers: tuple[tuple[str, tuple[int, ...]], ...]  # Numbers of the layers with each name.

    def is_first(self, name: str) -> Bool[Array, ""]:
        """Whether this is the first layer with this name."""
        return self.layer == dict(self.layers)[name][0]

    def index(self, name: str) -> Int[Array, ""]:
        """Returns how many earlier layers have this name: its place in `params`."""
        return jnp.sum(jnp.asarray(dict(self.layers)[name]) < self.layer)

    def share(self, name: str, value: Float[Array, "B T ..."]) -> "LayerContext":
        """Returns the context in which later layers find `value` under this name."""
        value = value.astype(self.values[name].dtype)
        return dataclasses.replace(self, values=self.values | {name: value})


CrossLayerOutput = tuple[
    Float[Array, "B T D"], LayerContext | None, PyTree
]  # Output, context of the next layer and state.


@runtime_checkable
class CrossLayerMixer(Protocol):
    """A mixer that reads or shares something of the other layers of its stack."""

    def cross_layer_spec(self) -> CrossLayerSpec | None:
        """Returns what it shares; None if its settings need no other layer."""

    def call_in_stack(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        layer_context: LayerContext | None,
        *,
        state: PyTree | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> CrossLayerOutput:
        """Runs the mixer (see `Mixer` in `arch/part.py`) and returns the context after it.

        Without a context, the mixer is that of the only layer of a stack.
        """


def cross_layer_spec(mixer: object) -> CrossLayerSpec | None:
    """Returns what a mixer shares; None if it needs no other layer."""
    return mixer.cross_layer_spec() if isinstance(mixer, CrossLayerMixer) else None


def join_specs(specs: Mapping[str, CrossLayerSpec | None]) -> CrossLayerSpec | None:
    """Returns what the mixers inside a mixer share, by prefix; None if none needs other layers."""
    used = [spec.with_prefix(prefix) for prefix, spec in specs.items() if spec is not None]
    if not used:
        return None
    values = {name: shape for spec in used for name, shape in spec.values.items()}
    params = {name: param for spec in used for name, param in spec.params.items()}
    return CrossLayerSpec(values, params)


def next_layer(layer_context: LayerContext | None) -> LayerContext | None:
    """Returns the context of the layer that follows."""
    return layer_context and dataclasses.replace(layer_context, layer=layer_context.layer + 1)


def context_within(layer_context: LayerContext | None, prefix: str) -> LayerContext | None:
    """Returns the context of a mixer inside a mixer, whose names follow `prefix`."""
    if layer_context is None:
        return None

    def cut(entries: dict[str, Array]) -> dict[str, Array]:
        return {k.removeprefix(prefix): v for k, v in entries.items() if k.startswith(prefix)}

    layers = (
        (n.removeprefix(prefix), nums) for n, nums in layer_context.layers if n.startswith(prefix)
    )
    return dataclasses.replace(
        layer_context,
        values=cut(layer_context.values),
        params=cut(layer_context.params),
        layers=tuple(layers),
    )


def merge_contexts(
    layer_context: LayerContext | None, prefix: str, inner: LayerContext | None
) -> LayerContext | None:
    """Returns `layer_context` with the values of those inside, whose names follow `prefix`."""
    if layer_context is None or inner is None:
        return layer_context
    values = {prefix + name: value for name, value in inner.values.items()}
    return dataclasses.replace(layer_context, values=layer_context.values | values)


def call_mixer(
    mixer: Mixer | CrossLayerMixer,
    x: Float[Array, "B T D"],
    seq: SequenceInfo,
    layer_context: LayerContext | None,
    *,
    prefix: str = "",
    state: PyTree | None = None,
    memory: Memory | None = None,
    key: Array | None = None,
) -> CrossLayerOutput:
    """Runs a mixer, which gets the context if it is a `CrossLayerMixer`.

    `prefix` is that of the names of a mixer inside a mixer.
    """
    if not isinstance(mixer, CrossLayerMixer):
        y, state = mixer(x, seq, state=state, memory=memory, key=key)
        return y, layer_context, state
    inner = context_within(layer_context, prefix)
    y, inner, state = mixer.call_in_stack(x, seq, inner, state=state, memory=memory, key=key)
    return y, merge_contexts(layer_context, prefix, inner), state


def make_layer_context(
    specs: Sequence[tuple[CrossLayerSpec | None, tuple[int, ...]]], x: Float[Array, "B T D"]
) -> LayerContext | None:
    """Returns the context of the first layer of a stack; None if no mixer needs it.

    Args:
        specs: what each block shares, and the numbers of its layers: one for each repeat of a
            stacked block, whose parameters have that leading axis.
        x: the tokens, for the shapes of the values.
    """
    used = [(spec, numbers) for spec, numbers in specs if spec is not None]
    if not used:
        return None
    depth = sum(len(numbers) for _, numbers in specs)
    layers: dict[str, list[int]] = {}
    params: dict[str, list[Array]] = {}
    values: dict[str, Array] = {}
    for spec, numbers in used:
        for name in (*spec.values, *spec.params):
            layers.setdefault(name, []).extend(numbers)
        for name, param in spec.params.items():
            params.setdefault(name, []).append(param)
        for name, shape in spec.values.items():
            empty = jnp.zeros((*x.shape[:2], *shape), x.dtype)
            values[name] = constrain(empty, P(BATCH_AXES, "context", "model"))
    in_order = {
        name: jnp.concatenate(parts)[jnp.argsort(jnp.asarray(layers[name]))]
        for name, parts in params.items()
    }
    return LayerContext(
        layer=jnp.zeros((), jnp.int32),
        values=values,
        params=in_order,
        depth=depth,
        layers=tuple((name, tuple(sorted(numbers))) for name, numbers in layers.items()),
    )
