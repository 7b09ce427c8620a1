"""A stack of blocks: those before the repeats, the repeats of a pattern, those left over.

Parameters of the pattern are stacked over its repeats and scanned.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.attention import Attention
from arch.block import Block
from arch.config import CHANNELS, MIXERS, ModelConfig
from arch.directions import BothWays
from arch.dropout import split
from arch.norms import Norm
from arch.pattern import Entry, Plan
from arch.positions import RelativePositions
from arch.sequence import Sequence
from arch.sharding import stacked
from arch.terms import Amount, Aux

POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


class State(NamedTuple):
    """What decoding keeps, a block's state each; those of the repeats are stacked."""

    first: list[Any]
    blocks: list[Any]
    last: list[Any]


class Stack(nnx.Module):
    """`stack(x, seq) -> (x, aux, state)`; `decodes` gives its blocks cross-attention."""

    def __init__(self, config: ModelConfig, plan: Plan, *, key: Array, decodes: bool = False):
        keys = jax.random.split(key, 4)
        self.config, self.repeats = config, plan.repeats

        def block(entry: Entry, key: Array, bare: bool = False) -> Block:
            return _block(config, entry, key, len(plan.entries()), decodes, bare)

        def each(entries: Iterable[Entry], key: Array, bare: bool = False) -> nnx.List:
            return nnx.List(
                block(entry, jax.random.fold_in(key, i), bare and i == 0)
                for i, entry in enumerate(entries)
            )

        self.first = each(plan.first, keys[0], config.block.bare_first)
        self.blocks = nnx.List(
            stacked(
                lambda k, entry=entry: block(entry, k),  # type: ignore[misc]
                jax.random.split(jax.random.fold_in(keys[1], i), plan.repeats),
            )
            for i, entry in enumerate(plan.layers)
        )
        self.last = each(plan.last, keys[2])
        heads = config.relative_heads()
        self.relative = (
            RelativePositions(config.width, heads, config.positions, key=keys[3]) if heads else None
        )
        self.norm = Norm(config.width, config.norm) if config.final_norm else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: Sequence,
        *,
        state: State | None = None,
        memory: tuple[Array, Sequence] | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Aux, State | None]:
        """Vectors after the last norm, what channels report by layer ([layers] each), the state."""
        keys = split(key, 3)
        if state is not None:
            self._check(state, x.shape[0])
        if self.relative is not None:
            seq = dataclasses.replace(seq, bias=self.relative.bias(seq.causal))
        none = State(*([None] * len(part) for part in (self.first, self.blocks, self.last)))
        old = none if state is None else state
        x, said, first = self._each(self.first, x, seq, old.first, memory, keys[0])
        x, more, blocks = self._repeats(x, seq, old.blocks, memory, keys[1])
        x, rest, last = self._each(self.last, x, seq, old.last, memory, keys[2])
        x = x if self.norm is None else self.norm(x)
        return x, _by_layer(said, more, rest), None if state is None else State(first, blocks, last)

    def start(self, batch: int, capacity: int, source: int) -> State:
        dtype = jnp.dtype(self.config.dtype)

        def empty(block: Any) -> Any:
            return block.start(batch, capacity, source, dtype)

        def repeated(block: Any) -> Any:
            one = empty(block)
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (self.repeats, *a.shape)), one)

        return State(
            [empty(b) for b in self.first],
            [repeated(b) for b in self.blocks],
            [empty(b) for b in self.last],
        )

    def _check(self, state: State, batch: int) -> None:
        """A state of another model or of other rows would broadcast, or fail far from here."""
        own = jax.eval_shape(lambda: self.start(batch, 1, 1))
        wanted, found = (
            [(jax.tree_util.keystr(path[:2]), leaf) for path, leaf in _leaves(s)]
            for s in (own, state)
        )
        if [(at, x.ndim) for at, x in wanted] != [(at, x.ndim) for at, x in found]:
            raise ValueError(
                "the state is of another architecture; make it by start(batch, capacity) of this"
            )
        for (at, a), (_, b) in zip(wanted, found, strict=True):
            axis = int(".blocks" in at)
            if a.ndim > axis and a.shape[axis] != b.shape[axis]:
                raise ValueError(
                    f"the state is of {b.shape[axis]} rows, there are {batch}; "
                    f"make it by start({batch}, capacity)"
                )

    def _each(self, blocks, x, seq, states, memory, key):
        auxes, new = [], []
        for block, state, k in zip(blocks, states, split(key, len(blocks)), strict=True):
            x, aux, state = self._remat(_run)(block, x, seq, state, memory, k)
            auxes.append(aux)
            new.append(state)
        return x, auxes, new

    def _repeats(self, x, seq, states, memory, key):
        def body(x, repeat):
            blocks, states, k = repeat
            auxes, new = [], []
            for block, state, kk in zip(blocks, states, split(k, len(blocks)), strict=True):
                x, aux, state = self._remat(_run)(block, x, seq, state, memory, kk)
                auxes.append(aux)
                new.append(state)
            return x, (auxes, new)

        xs = (
            list(self.blocks),
            states,
            None if key is None else jax.random.split(key, self.repeats),
        )
        with jax.named_scope("blocks"):
            if self.config.scan:
                x, (auxes, new) = jax.lax.scan(body, x, xs)
            else:
                x, (auxes, new) = _unrolled(body, x, xs, self.repeats)
        return x, auxes, new

    def _remat(self, function):
        if self.config.remat == "none":
            return function
        policy = POLICIES[self.config.remat]
        return jax.checkpoint(function, policy=policy, prevent_cse=not self.config.scan)


def _block(
    config: ModelConfig, entry: Entry, key: Array, depth: int, decodes: bool, bare: bool
) -> Block:
    D, keys = config.width, jax.random.split(key, 3)
    scale = (2 * depth) ** -0.5  # the residual stream keeps its size (GPT-2, section 2.3)
    part, Mixer = config.part(entry.mixer, entry.mixer_variant), MIXERS[entry.mixer]
    if "both" in Mixer.views(part) or config.directions.weights == "none":
        mixer = Mixer(D, part, key=keys[0], scale=scale)
    else:
        mixer = BothWays(Mixer, D, part, config.directions, key=keys[0], scale=scale)
    channel = config.part(entry.channel, entry.channel_variant)
    return Block(
        *(D, config.block, config.norm, mixer),
        CHANNELS[entry.channel](D, channel, key=keys[1], scale=scale),
        Attention(D, config.cross, key=keys[2], scale=scale, cross=True) if decodes else None,
        bare,
    )


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _run(block, x, seq, state, memory, key):
    return block(x, seq, state=state, memory=memory, key=key)


def _unrolled(body, x, xs, repeats: int):
    outs = []
    for i in range(repeats):
        x, out = body(x, jax.tree.map(lambda a: a[i], xs))  # noqa: B023
        outs.append(out)
    return x, jax.tree.map(lambda *a: jnp.stack(a), *outs)


def _by_layer(first: list[Aux], blocks: list[Aux], last: list[Aux]) -> Aux:
    """Reports in the order of the layers that make them, [layers] by name; `blocks` are [R]."""

    def single(auxes: list[Aux]) -> list[list[Aux]]:
        return [[jax.tree.map(lambda a: a[None], aux)] for aux in auxes]

    found: dict[str, list[Amount]] = {}
    for group in (*single(first), blocks, *single(last)):
        for name in dict.fromkeys(name for aux in group for name in aux):
            own = [aux[name] for aux in group if name in aux]
            tiled = jax.tree.map(lambda *a: jnp.stack(a, axis=1).reshape(-1), *own)
            found.setdefault(name, []).append(tiled)
    return {
        name: jax.tree.map(lambda *a: jnp.concatenate(a), *amounts)
        for name, amounts in found.items()
    }
