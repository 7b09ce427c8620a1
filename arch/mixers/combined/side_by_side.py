"""Several mixers side by side in one layer, on one input: `attention&mamba2+mlp` in a pattern.

Their outputs are added (Falcon-H1, arXiv:2507.22448), or each is normed and their mean is taken
(Hymba, arXiv:2411.13676). Factors of inputs and outputs are settings, not weights.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from arch.canon import Inner, TwoStageMixer
from arch.cross_layer import (
    CrossLayerOutput,
    CrossLayerSpec,
    LayerContext,
    call_mixer,
    context_within,
    cross_layer_spec,
    join_specs,
    merge_contexts,
)
from arch.layers.dropout import maybe_split_key
from arch.layers.norms import rms_norm
from arch.mixers.combined.bidirectional import Bidirectional, MixerSpec
from arch.mixers.kv_cache import KVCache
from arch.part import Memory, Mixer
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import ALL_VIEWS, SequenceInfo, View, intersect_views
from arch.sharding import make_vector
from errors import ConfigError
from settings.types import NonNegativeFloat, config


@config
class SideBySideConfig:
    """The sum of mixers that stand side by side in one layer."""

    scaled_fields: ClassVar[tuple[str, ...]] = ()
    knob_fields: ClassVar[tuple[str, ...]] = ()

    # Sum of the outputs, or the mean of the outputs after an RMSNorm of each.
    merge: Literal["sum", "norm_mean"] = "sum"
    norm_eps: NonNegativeFloat = 1e-6  # Number added to the mean square in the norm of an output.
    # Factors of the input of each mixer, in the order of the layer; empty: 1.
    in_scales: tuple[float, ...] = ()
    # Factors of the output of each mixer, in the order of the layer; empty: 1.
    out_scales: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class SideBySideParts:
    """The mixers of one layer, before they are made, and how they are merged."""

    names: tuple[str, ...]
    mixers: tuple[MixerSpec, ...]
    merging: SideBySideConfig

    def __post_init__(self) -> None:
        """Checks the factors.

        Raises:
            ConfigError: if there are more or fewer than mixers.
        """
        for name in ("in_scales", "out_scales"):
            scales = getattr(self.merging, name)
            if scales and len(scales) != len(self.names):
                raise ConfigError(
                    f"model.side_by_side.{name} has {len(scales)} factors, {'&'.join(self.names)} "
                    f"has {len(self.names)} mixers; give one factor for each, or none"
                )

    def scales(self, name: Literal["in_scales", "out_scales"]) -> tuple[float, ...]:
        """Returns one factor for each mixer."""
        scales: tuple[float, ...] = getattr(self.merging, name)
        return scales or (1.0,) * len(self.names)


class SideBySide(nnx.Module):
    """A mixer (see `arch/part.py`) that merges the outputs of several."""

    def __init__(self, D: int, cfg: SideBySideParts, *, key: Array, scale: float = 1.0):
        keys = jax.random.split(key, len(cfg.names))
        self.parts = cfg
        self.mixers = nnx.List(
            mixer.make(D, key=k, scale=scale) for mixer, k in zip(cfg.mixers, keys, strict=True)
        )
        if cfg.merging.merge == "norm_mean":
            self.norms = nnx.List(make_vector(D, 1.0) for _ in cfg.names)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        state: tuple[PyTree, ...] | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[PyTree, ...] | None]:
        """Runs every mixer on `x` and merges the outputs; a state has one entry per mixer."""
        y, _, state = self.call_in_stack(x, seq, None, state=state, memory=memory, key=key)
        return y, state

    def cross_layer_spec(self) -> CrossLayerSpec | None:
        """Returns what the mixers share, under their number in the layer."""
        specs = {f"{i}.": cross_layer_spec(mixer) for i, mixer in enumerate(self.mixers)}
        return join_specs(specs)

    def call_in_stack(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        layer_context: LayerContext | None,
        *,
        state: tuple[PyTree, ...] | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerContext | None, tuple[PyTree, ...] | None]:
        """Runs every mixer as one of this layer and merges the outputs."""
        return self.finish(
            self.project(x), x, seq, layer_context, state=state, memory=memory, key=key
        )

    @staticmethod
    def inner_widths(D: int, cfg: SideBySideParts) -> tuple[int, ...]:
        """Returns the widths inside all mixers, in their order."""
        return tuple(width for mixer in cfg.mixers for width in mixer.inner_widths(D))

    def project(self, x: Float[Array, "B T D"]) -> Inner:
        """Computes what is convolved inside the mixers, in their order."""
        inner: Inner = ()
        for mixer, a in zip(self.mixers, self.parts.scales("in_scales"), strict=True):
            if isinstance(mixer, TwoStageMixer):
                inner += mixer.project(_scaled(x, a))
        return inner

    def finish(
        self,
        inner: Inner,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        layer_context: LayerContext | None,
        *,
        state: tuple[PyTree, ...] | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerContext | None, tuple[PyTree, ...] | None]:
        """Runs every mixer from what `project` returned, and merges the outputs."""
        if state is not None:
            _check_capacities(state)
        if self.supported_views(self.parts).get("prefix") == "causal":
            seq = dataclasses.replace(seq, is_prefix=None)
        count, merging = len(self.mixers), self.parts.merging
        prior = (None,) * count if state is None else state
        keys = maybe_split_key(key, count)
        in_scales, out_scales = self.parts.scales("in_scales"), self.parts.scales("out_scales")
        outputs, states = [], []
        for i, (mixer, spec) in enumerate(zip(self.mixers, self.parts.mixers, strict=True)):
            n = len(spec.inner_widths(x.shape[-1]))
            mixer_inner, inner = inner[:n], inner[n:]
            y, new_context, new_state = _finish_mixer(
                *(
                    mixer,
                    mixer_inner,
                    _scaled(x, in_scales[i]),
                    seq,
                    context_within(layer_context, f"{i}."),
                ),
                state=prior[i],
                memory=memory,
                key=keys[i],
            )
            layer_context = merge_contexts(layer_context, f"{i}.", new_context)
            if merging.merge == "norm_mean":
                y = rms_norm(y, self.norms[i][...], merging.norm_eps) / count
            outputs.append(_scaled(y, out_scales[i]))
            states.append(new_state)
        return sum(outputs[1:], outputs[0]), layer_context, None if state is None else tuple(states)

    def init_state(self, batch_size: int, max_length: int, dtype: jnp.dtype) -> tuple[PyTree, ...]:
        """Returns the empty state of each mixer."""
        return tuple(mixer.init_state(batch_size, max_length, dtype) for mixer in self.mixers)

    @staticmethod
    def supported_views(cfg: SideBySideParts) -> dict[View, str]:
        """Returns the views that all mixers support."""
        views = ALL_VIEWS
        for mixer in cfg.mixers:
            views = intersect_views(views, mixer.supported_views())
        return views

    @staticmethod
    def tp_dims(D: int, cfg: SideBySideParts) -> dict[str, int]:
        """Returns the dimensions of all mixers that tensor parallelism splits."""
        return {
            f"{name}.{key}": size
            for name, mixer in zip(cfg.names, cfg.mixers, strict=True)
            for key, size in mixer.mixer_class.tp_dims(D, mixer.config).items()
        }

    @staticmethod
    def cost(D: int, cfg: SideBySideParts, context: CostContext) -> PartCost:
        """Returns the sum of the costs of the mixers, whose terms have their names in front."""
        params = active = D * len(cfg.names) * (cfg.merging.merge == "norm_mean")
        state_bytes, terms = 0, dict[str, TermFlops]()
        for i, (name, mixer) in enumerate(zip(cfg.names, cfg.mixers, strict=True)):
            cost = mixer.cost(D, context)
            params, active = params + cost.params, active + cost.active_params
            state_bytes += cost.state_bytes
            name = name if cfg.names.count(name) == 1 else f"{name}{i}"
            terms |= {f"{name}.{term}": flops for term, flops in cost.terms.items()}
        return PartCost(params, active, terms, state_bytes)


def _scaled(x: Float[Array, "B T D"], factor: float) -> Float[Array, "B T D"]:
    return x if factor == 1 else factor * x


def _finish_mixer(
    mixer: Mixer | Bidirectional,
    inner: Inner,
    x: Float[Array, "B T D"],
    seq: SequenceInfo,
    layer_context: LayerContext | None,
    *,
    state: PyTree | None,
    memory: Memory | None,
    key: Array | None,
) -> CrossLayerOutput:
    """Runs a mixer, from what its `project` returned if it has two stages."""
    if isinstance(mixer, TwoStageMixer):
        return mixer.finish(inner, x, seq, layer_context, state=state, memory=memory, key=key)
    return call_mixer(mixer, x, seq, layer_context, state=state, memory=memory, key=key)


def _check_capacities(state: tuple[PyTree, ...]) -> None:
    """Refuses caches without a window that hold different numbers of tokens.

    Raises:
        ValueError: if there are such caches.
    """
    leaves = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, KVCache))
    caches = [part for part in leaves if isinstance(part, KVCache) and not part.is_ring]
    slots = sorted({cache.k.shape[1] for cache in caches})
    if len(slots) > 1:
        raise ValueError(
            f"mixers side by side have states for {slots} tokens, must be equal; make all of them "
            "by one init_state(batch_size, max_length)"
        )
