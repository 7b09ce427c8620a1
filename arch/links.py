"""What the layers of a stack tell each other, as far as their mixers declare it.

A `LinkedMixer` is told its place in the stack. It may hand values of each token on to later layers
(attention: the values of the first layer, arXiv:2410.17897), and it may show a row to all layers,
which then read the rows of all. `Links` holds this for one layer; a stack carries it from block to
block, also through its scan. Other mixers never see it.
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


class LinkSpec(NamedTuple):
    """What one mixer exchanges, by name; it may be nothing but the place of its layer."""

    # The shape of what it hands on for each token; later layers with this name read it.
    values: dict[str, tuple[int, ...]] = {}  # noqa: RUF012
    # What it shows to all layers with this name; [repeats ...] if the mixer is stacked.
    rows: dict[str, Array] = {}  # noqa: RUF012

    def under(self, prefix: str) -> "LinkSpec":
        """Returns the same with `prefix` before each name."""
        return LinkSpec(
            {prefix + name: shape for name, shape in self.values.items()},
            {prefix + name: row for name, row in self.rows.items()},
        )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["layer", "values", "rows"],
    meta_fields=["depth", "users"],
)
@dataclasses.dataclass(frozen=True)
class Links:
    """What a mixer reads of its stack; it is a pytree."""

    layer: Int[Array, ""]  # Number of the layer in the stack, from 0.
    values: dict[str, Float[Array, "B T ..."]]  # From earlier layers; 0 in the first with a name.
    rows: dict[str, Float[Array, "users ..."]]  # From all layers that show one, in their order.
    depth: int  # Number of layers of the stack.
    users: tuple[tuple[str, tuple[int, ...]], ...]  # Numbers of the layers with each name.

    def is_first(self, name: str) -> Bool[Array, ""]:
        """Whether this is the first layer with this name."""
        return self.layer == dict(self.users)[name][0]

    def index(self, name: str) -> Int[Array, ""]:
        """Returns how many earlier layers have this name: the number of this layer's row."""
        return jnp.sum(jnp.asarray(dict(self.users)[name]) < self.layer)

    def hand_on(self, name: str, value: Float[Array, "B T ..."]) -> "Links":
        """Returns the links in which later layers find `value` under this name."""
        value = value.astype(self.values[name].dtype)
        return dataclasses.replace(self, values=self.values | {name: value})


LinkedOutput = tuple[Float[Array, "B T D"], Links | None, PyTree]  # Output, links and state.


@runtime_checkable
class LinkedMixer(Protocol):
    """A mixer that exchanges something with the other layers of its stack."""

    def links(self) -> LinkSpec | None:
        """Returns what it exchanges; None if its settings need no links."""

    def call_linked(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        links: Links | None,
        *,
        state: PyTree | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> LinkedOutput:
        """Runs the mixer (see `Mixer` in `arch/part.py`) and returns the links after it.

        Without links, the mixer is that of the only layer of a stack.
        """


def mixer_links(mixer: object) -> LinkSpec | None:
    """Returns what a mixer exchanges; None if it needs no links."""
    return mixer.links() if isinstance(mixer, LinkedMixer) else None


def join_links(specs: Mapping[str, LinkSpec | None]) -> LinkSpec | None:
    """Returns what the mixers inside a mixer exchange, by prefix; None if none needs links."""
    used = [spec.under(prefix) for prefix, spec in specs.items() if spec is not None]
    if not used:
        return None
    values = {name: shape for spec in used for name, shape in spec.values.items()}
    rows = {name: row for spec in used for name, row in spec.rows.items()}
    return LinkSpec(values, rows)


def next_layer(links: Links | None) -> Links | None:
    """Returns the links of the layer that follows."""
    return links and dataclasses.replace(links, layer=links.layer + 1)


def links_within(links: Links | None, prefix: str) -> Links | None:
    """Returns the links of a mixer inside a mixer, whose names follow `prefix`."""
    if links is None:
        return None

    def cut(entries: dict[str, Array]) -> dict[str, Array]:
        return {k.removeprefix(prefix): v for k, v in entries.items() if k.startswith(prefix)}

    users = ((n.removeprefix(prefix), nums) for n, nums in links.users if n.startswith(prefix))
    return dataclasses.replace(
        links, values=cut(links.values), rows=cut(links.rows), users=tuple(users)
    )


def merge_links(links: Links | None, prefix: str, inner: Links | None) -> Links | None:
    """Returns `links` with the values of those inside, whose names follow `prefix`."""
    if links is None or inner is None:
        return links
    values = {prefix + name: value for name, value in inner.values.items()}
    return dataclasses.replace(links, values=links.values | values)


def call_mixer(
    mixer: Mixer | LinkedMixer,
    x: Float[Array, "B T D"],
    seq: SequenceInfo,
    links: Links | None,
    *,
    prefix: str = "",
    state: PyTree | None = None,
    memory: Memory | None = None,
    key: Array | None = None,
) -> LinkedOutput:
    """Runs a mixer, which gets the links if it is a `LinkedMixer`.

    `prefix` is that of the names of a mixer inside a mixer.
    """
    if not isinstance(mixer, LinkedMixer):
        y, state = mixer(x, seq, state=state, memory=memory, key=key)
        return y, links, state
    inner = links_within(links, prefix)
    y, inner, state = mixer.call_linked(x, seq, inner, state=state, memory=memory, key=key)
    return y, merge_links(links, prefix, inner), state


def make_links(
    specs: Sequence[tuple[LinkSpec | None, tuple[int, ...]]], x: Float[Array, "B T D"]
) -> Links | None:
    """Returns the links of the first layer of a stack; None if no mixer needs them.

    Args:
        specs: what each block exchanges, and the numbers of its layers: one for each repeat of a
            stacked block, whose rows have that leading axis.
        x: the tokens, for the shapes of the values.
    """
    used = [(spec, layers) for spec, layers in specs if spec is not None]
    if not used:
        return None
    depth = sum(len(layers) for _, layers in specs)
    users: dict[str, list[int]] = {}
    rows: dict[str, list[Array]] = {}
    values: dict[str, Array] = {}
    for spec, layers in used:
        for name in (*spec.values, *spec.rows):
            users.setdefault(name, []).extend(layers)
        for name, row in spec.rows.items():
            rows.setdefault(name, []).append(row)
        for name, shape in spec.values.items():
            empty = jnp.zeros((*x.shape[:2], *shape), x.dtype)
            values[name] = constrain(empty, P(BATCH_AXES, "context", "model"))
    in_order = {
        name: jnp.concatenate(parts)[jnp.argsort(jnp.asarray(users[name]))]
        for name, parts in rows.items()
    }
    return Links(
        layer=jnp.zeros((), jnp.int32),
        values=values,
        rows=in_order,
        depth=depth,
        users=tuple((name, tuple(sorted(layers))) for name, layers in users.items()),
    )
