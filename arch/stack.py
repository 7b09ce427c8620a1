"""A stack of blocks: a prefix, the repeats of a pattern, and a suffix (see `arch/pattern.py`).

The parameters of the pattern have a leading axis over its repeats, over which the stack scans.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.block import Block, BlockOutput, BlockState
from arch.canon import make_canon_layers
from arch.config import ModelConfig
from arch.cross_layer import (
    CrossLayerSpec,
    LayerContext,
    cross_layer_spec,
    make_layer_context,
    next_layer,
)
from arch.layers.dropout import maybe_split_key
from arch.layers.norms import Norm
from arch.layers.positions import RelativePositionBias
from arch.mixers.attention import Attention
from arch.part import Memory
from arch.pattern import LayerLayout, LayerSpec
from arch.sequence import SequenceInfo
from arch.sharding import stack_modules
from arch.stack_state import BlockStates, StackState, check_state
from arch.weighted_sum import AuxMetrics, ProductOfMeans, WeightedSum

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}

# Layers that model.scan=False unrolls at a time. Deeper stacks scan over as many, so that the time
# to compile them does not grow with the depth.
MAX_UNROLLED_LAYERS = 4

# The blocks of one repeat, the key, and the number of the repeat (None without a state); in a scan
# of all repeats, on a leading axis.
Repeat = tuple[list[Block], Array | None, Array | None]
# The hidden vectors, the context of the next layer, and the states of all repeats.
Carry = tuple[Array, LayerContext | None, list[Array]]


class Stack(nnx.Module):
    """A module `stack(x, seq) -> (x, aux, state)` that runs its blocks in order."""

    def __init__(
        self,
        config: ModelConfig,
        layout: LayerLayout,
        *,
        key: Array,
        has_cross_attention: bool = False,
    ):
        keys = jax.random.split(key, 4)
        self.config, self.repeats = config, layout.repeats

        def make_block(layer: LayerSpec, key: Array, skip_norm: bool = False) -> Block:
            return _make_block(config, layer, key, layout.depth, has_cross_attention, skip_norm)

        def make_blocks(
            layers: Iterable[LayerSpec], key: Array, skip_first_norm: bool = False
        ) -> nnx.List:
            return nnx.List(
                make_block(layer, jax.random.fold_in(key, i), skip_first_norm and i == 0)
                for i, layer in enumerate(layers)
            )

        self.first = make_blocks(layout.prefix, keys[0], config.block.skip_first_norm)
        self.blocks = nnx.List(
            stack_modules(
                lambda k, layer=layer: make_block(layer, k),  # type: ignore[misc]
                jax.random.split(jax.random.fold_in(keys[1], i), layout.repeats),
            )
            for i, layer in enumerate(layout.period)
        )
        self.last = make_blocks(layout.suffix, keys[2])
        heads = config.num_relative_heads()
        self.relative = (
            RelativePositionBias(config.width, heads, config.positions, key=keys[3])
            if heads
            else None
        )
        self.norm = Norm(config.width, config.norm) if config.final_norm else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        state: StackState | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], AuxMetrics, StackState | None]:
        """Runs all blocks and the final norm.

        Returns the vectors after the norm, the channels' reports with one entry per layer that
        makes them ([layers] by name), and the new state (None without a state).
        """
        keys = maybe_split_key(key, 3)
        if state is not None:
            batch_size, num_tokens = x.shape[:2]
            template = jax.eval_shape(lambda: self.init_state(batch_size, 1, 1))
            check_state(state, template, num_tokens)
        if self.relative is not None:
            seq = dataclasses.replace(seq, attn_bias=self.relative.make_bias(seq.causal))
        prev = self._no_states() if state is None else state
        layer_context = self.make_layer_context(x)
        x, layer_context, aux_first, first = self._run_blocks(
            self.first, x, layer_context, seq, prev.first, memory, keys[0]
        )
        x, layer_context, aux_blocks, blocks = self._scan_repeats(
            x, layer_context, seq, prev.blocks, memory, keys[1]
        )
        x, _, aux_last, last = self._run_blocks(
            self.last, x, layer_context, seq, prev.last, memory, keys[2]
        )
        x = x if self.norm is None else self.norm(x)
        aux = _stack_layer_metrics(aux_first, aux_blocks, aux_last)
        return x, aux, None if state is None else StackState(first, blocks, last)

    def init_state(self, batch_size: int, max_length: int, source_length: int) -> StackState:
        """Returns an empty state for decoding `batch_size` rows of at most `max_length` tokens."""
        dtype = jnp.dtype(self.config.dtype)

        def block_state(block: Block) -> BlockState:
            return block.init_state(batch_size, max_length, source_length, dtype)

        def repeated_state(block: Block) -> BlockState:
            return jax.tree.map(
                lambda a: jnp.broadcast_to(a, (self.repeats, *a.shape)), block_state(block)
            )

        return StackState(
            [block_state(b) for b in self.first],
            [repeated_state(b) for b in self.blocks],
            [block_state(b) for b in self.last],
        )

    def make_layer_context(self, x: Float[Array, "B T D"]) -> LayerContext | None:
        """Returns what the first layer reads of the others; None if no mixer reads them."""
        specs: list[tuple[CrossLayerSpec | None, tuple[int, ...]]] = []
        end, period = len(self.first) + self.repeats * len(self.blocks), len(self.blocks)
        for blocks, start in ((self.first, 0), (self.last, end)):
            for number, block in enumerate(blocks, start):
                spec = cross_layer_spec(block.mixer)
                if spec is not None:
                    params = {name: param[None] for name, param in spec.params.items()}
                    spec = spec._replace(params=params)
                specs.append((spec, (number,)))
        for number, block in enumerate(self.blocks, len(self.first)):
            specs.append((cross_layer_spec(block.mixer), tuple(range(number, end, period))))
        return make_layer_context(specs, x)

    def _no_states(self) -> StackState:
        groups = self.first, self.blocks, self.last
        return StackState(*([None] * len(blocks) for blocks in groups))

    def _run_blocks(
        self,
        blocks: Sequence[Block],
        x: Float[Array, "B T D"],
        layer_context: LayerContext | None,
        seq: SequenceInfo,
        states: BlockStates,
        memory: Memory | None,
        key: Array | None,
    ) -> tuple[Float[Array, "B T D"], LayerContext | None, list[AuxMetrics], BlockStates]:
        """Runs blocks that are not stacked, one after another."""
        run, auxes, new_states = self._remat(_call_block), [], []
        for block, state, k in zip(blocks, states, maybe_split_key(key, len(blocks)), strict=True):
            x, aux, state, layer_context = run(block, x, seq, layer_context, state, memory, k)
            layer_context = next_layer(layer_context)
            auxes.append(aux)
            new_states.append(state)
        return x, layer_context, auxes, new_states

    def _scan_repeats(
        self,
        x: Float[Array, "B T D"],
        layer_context: LayerContext | None,
        seq: SequenceInfo,
        states: BlockStates,
        memory: Memory | None,
        key: Array | None,
    ) -> tuple[Float[Array, "B T D"], LayerContext | None, list[AuxMetrics], BlockStates]:
        """Runs the blocks of the pattern, repeat by repeat; states and reports have that axis."""
        leaves, old_structure = jax.tree.flatten(states)
        structures = [old_structure]  # A state may know that it is no longer empty.

        def body(carry: Carry, repeat: Repeat) -> tuple[Carry, list[AuxMetrics]]:
            x, layer_context, stored = carry
            blocks, k, index = repeat
            prev = jax.tree.unflatten(
                old_structure,
                [jax.lax.dynamic_index_in_dim(s, index, keepdims=False) for s in stored],
            )
            x, layer_context, auxes, new_states = self._run_blocks(
                blocks, x, layer_context, seq, prev, memory, k
            )
            new, structure = jax.tree.flatten(new_states)
            structures.append(structure)
            # States are written in place. As outputs of the scan they would be copied each time.
            update = jax.lax.dynamic_update_index_in_dim
            stored = [update(s, a, index, 0) for s, a in zip(stored, new, strict=True)]
            return (x, layer_context, stored), auxes

        xs = (
            list(self.blocks),
            None if key is None else jax.random.split(key, self.repeats),
            jnp.arange(self.repeats) if leaves else None,
        )
        with jax.named_scope("blocks"):
            unrolled = max(MAX_UNROLLED_LAYERS // max(len(self.blocks), 1), 1)  # repeats
            if self.config.scan or self.repeats > unrolled:
                unroll = 1 if self.config.scan else unrolled
                carry, auxes = jax.lax.scan(body, (x, layer_context, leaves), xs, unroll=unroll)
            else:
                carry, auxes = _unrolled_scan(body, (x, layer_context, leaves), xs, self.repeats)
        x, layer_context, leaves = carry
        return x, layer_context, auxes, jax.tree.unflatten(structures[-1], leaves)

    def _remat(self, function: Callable[..., BlockOutput]) -> Callable[..., BlockOutput]:
        if self.config.remat == "none":
            return function
        policy = REMAT_POLICIES[self.config.remat]
        return jax.checkpoint(function, policy=policy, prevent_cse=not self.config.scan)


def _make_block(
    config: ModelConfig,
    layer: LayerSpec,
    key: Array,
    depth: int,
    has_cross_attention: bool,
    skip_norm: bool,
) -> Block:
    D, parts, keys = config.width, config.layer_parts(layer), jax.random.split(key, 3)
    scale = (2 * depth) ** -0.5  # Keeps the size of the residual stream (GPT-2, section 2.3).
    mixer = parts.mixer.make(D, key=keys[0], scale=scale)
    canon_key = jax.random.fold_in(key, 3)
    canon = make_canon_layers(parts.canon_points(), parts.block.canon_width, key=canon_key)
    return Block(
        *(D, parts.block, config.norm, mixer),
        parts.channel_class(D, parts.channel_config, key=keys[1], scale=scale),
        Attention(D, config.cross_attention, key=keys[2], scale=scale, is_cross=True)
        if has_cross_attention
        else None,
        skip_norm,
        canon,
    )


def _call_block(
    block: Block,
    x: Float[Array, "B T D"],
    seq: SequenceInfo,
    layer_context: LayerContext | None,
    state: BlockState | None,
    memory: Memory | None,
    key: Array | None,
) -> BlockOutput:
    return block(x, seq, layer_context=layer_context, state=state, memory=memory, key=key)


def _unrolled_scan(
    body: Callable[[Carry, Repeat], tuple[Carry, list[AuxMetrics]]],
    carry: Carry,
    xs: Repeat,
    repeats: int,
) -> tuple[Carry, list[AuxMetrics]]:
    outs = []
    for i in range(repeats):
        carry, out = body(carry, jax.tree.map(lambda a: a[i], xs))  # noqa: B023
        outs.append(out)
    return carry, jax.tree.map(lambda *a: jnp.stack(a), *outs)


def _stack_layer_metrics(
    first: list[AuxMetrics], blocks: list[AuxMetrics], last: list[AuxMetrics]
) -> AuxMetrics:
    """Concatenates reports in layer order to [layers ...] by name; `blocks` have [R ...]."""

    def single(auxes: list[AuxMetrics]) -> list[list[AuxMetrics]]:
        return [[jax.tree.map(lambda a: a[None], aux)] for aux in auxes]

    def interleave(*arrays: Array) -> Array:
        return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])

    parts: dict[str, list[WeightedSum | ProductOfMeans]] = {}
    for group in (*single(first), blocks, *single(last)):
        for name in dict.fromkeys(name for aux in group for name in aux):
            sums = [aux[name] for aux in group if name in aux]
            parts.setdefault(name, []).append(jax.tree.map(interleave, *sums))
    return {
        name: jax.tree.map(lambda *a: jnp.concatenate(a), *sums) for name, sums in parts.items()
    }
