"""A bidirectional wrapper for one-directional mixers: a second pass over the reversed row.

Reversing a whole row reads each of its documents from the end, and segments separate documents in
either direction. The second pass costs as much as the first, and `cost` counts it.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from arch.canon import inner_widths
from arch.cross_layer import (
    CrossLayerOutput,
    CrossLayerSpec,
    LayerContext,
    call_mixer,
    cross_layer_spec,
    join_specs,
)
from arch.layers.dropout import maybe_split_key
from arch.layers.linear import linear
from arch.part import Memory, Mixer
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import SequenceInfo, View
from arch.sharding import P, make_matrix
from settings.types import config


@config
class BidirectionalConfig:
    """The second direction of recurrent mixers; it runs only under the bidirectional view."""

    # Weights of the backward direction: no backward direction, the forward weights, or new ones.
    weights: Literal["none", "shared", "separate"] = "none"
    # Sum of the directions, or a gate g = sigmoid(x w) with g forward + (1 - g) backward.
    merge: Literal["sum", "gate"] = "sum"


class Bidirectional(nnx.Module):
    """A mixer that runs a one-directional mixer in both directions under the bidirectional view."""

    def __init__(
        self,
        mixer_class: type[Mixer],
        D: int,
        mixer_config: object,
        cfg: BidirectionalConfig,
        *,
        key: Array,
        scale: float = 1.0,
    ):
        keys = jax.random.split(key, 3)
        self.cfg = cfg
        self.forward = mixer_class(D, mixer_config, key=keys[0], scale=scale)
        if cfg.weights == "separate":
            self.backward = mixer_class(D, mixer_config, key=keys[1], scale=scale)
        if cfg.merge == "gate":
            self.w_gate = make_matrix(keys[2], (D, D), P("data", "model"))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        state: PyTree | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], PyTree | None]:
        """Runs one direction, or both under the bidirectional view, where a state is refused.

        Raises:
            ValueError: if a state is given under the bidirectional view.
        """
        y, _, state = self.call_in_stack(x, seq, None, state=state, memory=memory, key=key)
        return y, state

    def cross_layer_spec(self) -> CrossLayerSpec | None:
        """Returns what each direction shares with the same direction of other layers."""
        forward = cross_layer_spec(self.forward)
        backward = cross_layer_spec(self.backward) if self.cfg.weights == "separate" else forward
        return join_specs({"forward.": forward, "backward.": backward})

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
        """Runs one direction, or both, each with what it reads of other layers.

        Raises:
            ValueError: if a state is given under the bidirectional view.
        """
        keys = maybe_split_key(key, 2)
        y, layer_context, new_state = call_mixer(
            *(self.forward, x, seq, layer_context),
            prefix="forward.",
            state=state,
            memory=memory,
            key=keys[0],
        )
        if seq.causal:
            return y, layer_context, new_state
        if state is not None:
            raise ValueError(
                "decoding from a state needs a causal view; this mixer also reads rows backwards"
            )
        backward = self.backward if self.cfg.weights == "separate" else self.forward
        z, layer_context, _ = call_mixer(
            *(backward, jnp.flip(x, 1), seq.flip(), layer_context),
            prefix="backward.",
            memory=memory,
            key=keys[1],
        )
        z = jnp.flip(z, 1)
        if self.cfg.merge == "sum":
            return y + z, layer_context, None
        gate = jax.nn.sigmoid(linear(x, self.w_gate[...]))
        return z + gate * (y - z), layer_context, None

    def init_state(self, batch_size: int, max_length: int, dtype: jnp.dtype) -> PyTree:
        """Returns the empty state of the forward direction."""
        return self.forward.init_state(batch_size, max_length, dtype)

    @staticmethod
    def cost(
        one_way_cost: PartCost, D: int, cfg: BidirectionalConfig, context: CostContext
    ) -> PartCost:
        """Returns the cost of this mixer, given that of one direction."""
        is_bidirectional, is_gated = context.view == "bidirectional", cfg.merge == "gate"
        is_separate = cfg.weights == "separate"
        gate = D * D * is_gated
        params = one_way_cost.params * (2 if is_separate else 1) + gate
        active_directions = 2 if is_bidirectional and is_separate else 1
        active = one_way_cost.active_params * active_directions + gate * is_bidirectional
        if not is_bidirectional:
            return dataclasses.replace(one_way_cost, params=params, active_params=active)
        terms = {name: flops.times(2) for name, flops in one_way_cost.terms.items()}
        if is_gated:
            terms["gate"] = TermFlops(2.0 * gate, 2.0 * gate)
        return PartCost(params, active, terms, one_way_cost.state_bytes)


@dataclasses.dataclass(frozen=True)
class MixerSpec:
    """A mixer before it is made: its class and its settings, and those of a second direction.

    The second direction is added if the mixer reads rows in one direction only and
    `BidirectionalConfig.weights` asks for it.
    """

    mixer_class: type[Mixer]
    config: object  # Of the mixer's class.
    bidirectional: BidirectionalConfig

    @property
    def has_second_direction(self) -> bool:
        """Whether the mixer is made as a `Bidirectional`."""
        reads_both = "bidirectional" in self.mixer_class.supported_views(self.config)
        return self.bidirectional.weights != "none" and not reads_both

    def make(self, D: int, *, key: Array, scale: float = 1.0) -> Mixer | Bidirectional:
        """Returns the mixer for a model of width D (see `Part` in `arch/part.py`)."""
        if self.has_second_direction:
            args = self.mixer_class, D, self.config, self.bidirectional
            return Bidirectional(*args, key=key, scale=scale)
        return self.mixer_class(D, self.config, key=key, scale=scale)

    def supported_views(self) -> dict[View, str]:
        """Returns the views of the mixer, with "full" or "causal" for each."""
        views = self.mixer_class.supported_views(self.config)
        return {**views, "bidirectional": "full"} if self.has_second_direction else views

    def inner_widths(self, D: int) -> tuple[int, ...]:
        """Returns the widths at the point of its Canon layer; a second direction has no such."""
        return () if self.has_second_direction else inner_widths(self.mixer_class, D, self.config)

    def cost(self, D: int, context: CostContext) -> PartCost:
        """Returns the cost of the mixer, with that of a second direction."""
        cost = self.mixer_class.cost(D, self.config, context)
        if not self.has_second_direction:
            return cost
        return Bidirectional.cost(cost, D, self.bidirectional, context)
