"""The one backbone: a pattern of `mixer+channel` blocks between an embedding and a head.

A **mixer** lets tokens talk: `mixer(x, seq, *, state=None, memory=None, key=None) -> (y, state)`,
with `mixer.start(batch, capacity, dtype)` the empty state to decode from and `views` what it can
see under each view. A **channel** treats each token by itself: `channel(x, seq, *, key=None) ->
(y, aux)`. Both are built as `Part(D, cfg, key=key, scale=scale)` (`scale` of the matrix that
writes to the residual stream), bill themselves, `Part.cost(D, cfg, place)`, and say what tensor
parallelism cuts along, `Part.cuts(D, cfg)`.

Parameters of the pattern are stacked over its repeats and scanned. Left out on purpose: losses,
data, devices.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.attention import Attention, AttentionConfig
from arch.block import Block, BlockConfig
from arch.dropout import split
from arch.embedding import EmbedConfig, Embedding, Head, HeadConfig, HeadWeights
from arch.mlp import Mlp, MlpConfig
from arch.norms import Norm, NormConfig
from arch.pattern import Entry, parse
from arch.positions import PositionsConfig
from arch.sequence import Sequence
from arch.sharding import stacked
from arch.terms import Amount, Aux
from errors import ConfigError
from schema import Count, Natural, changed, config, nearest

# To add a part: write its file, import it, name it here and in ModelConfig.
MIXERS: dict[str, Any] = {"attention": Attention}
CHANNELS: dict[str, Any] = {"mlp": Mlp}

POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


@config
class ModelConfig:
    width: Count = 256  # D
    depth: Count = 4  # L
    layers: tuple[str, ...] = ("attention+mlp",)  # tiled over the depth
    first: tuple[str, ...] = ()  # layers before the repeats
    vocab: Natural = 0  # ids; 0: the tokenizer's
    vocab_multiple: Count = 128  # rows of the table are padded to a multiple of this
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of computation
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass computes again
    scan: bool = True  # over repeats; False unrolls them, to the same parameters
    final_norm: bool = True
    embed: EmbedConfig = EmbedConfig()
    positions: PositionsConfig = PositionsConfig()
    norm: NormConfig = NormConfig()
    block: BlockConfig = BlockConfig()
    head: HeadConfig = HeadConfig()
    attention: AttentionConfig = AttentionConfig()
    mlp: MlpConfig = MlpConfig()
    variants: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)  # name: differences

    def check(self) -> None:
        if not self.layers:
            raise ConfigError("model.layers is empty, must name a block, as ('attention+mlp',)")
        least = len(self.first) + len(self.layers)
        if self.depth < least:
            raise ConfigError(
                f"model.depth {self.depth} does not hold model.first and one round of model.layers"
                f" ({least} blocks); nearest: {least}"
            )
        self.cuts()
        if self.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise ConfigError("model.dtype is 'float64', which needs jax_enable_x64; or 'float32'")

    def pattern(self) -> list[Entry]:
        """All entries: `first`, then one round of `layers`."""
        return [parse(text, MIXERS, CHANNELS) for text in (*self.first, *self.layers)]

    def plan(self) -> tuple[list[Entry], list[Entry], int, list[Entry]]:
        """Blocks before the repeats, one repeat, how many repeats, blocks left over."""
        entries, count = self.pattern(), len(self.layers)
        first, layers = entries[:-count], entries[-count:]
        repeats, left = divmod(self.depth - len(first), count)
        return first, layers, repeats, layers[:left]

    def part(self, name: str, variant: str = "") -> Any:
        """The config of a part or of a variant of it."""
        base = getattr(self, name)
        if not variant:
            return base
        if variant not in self.variants:
            hint = nearest(variant, self.variants)
            raise ConfigError(f"model.layers has {name}@{variant}; model.variants: {hint}")
        return changed(base, self.variants[variant], f"model.variants.{variant}")

    def cuts(self) -> dict[str, int]:
        """What tensor parallelism cuts along, by setting; ConfigError if a part does not fit."""
        found: dict[str, int] = {}
        for e in self.pattern():
            found |= MIXERS[e.mixer].cuts(self.width, self.part(e.mixer, e.mixer_variant))
            found |= CHANNELS[e.channel].cuts(self.width, self.part(e.channel, e.channel_variant))
        return found

    @property
    def rows(self) -> int:
        """Rows of the embedding table."""
        if not self.vocab:
            raise ConfigError("model.vocab is 0 outside a run; give the number of ids")
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple


class State(NamedTuple):
    """What decoding keeps, a mixer state each; those of the repeats are stacked."""

    first: list[Any]
    blocks: list[Any]
    last: list[Any]


class Model(nnx.Module):
    """`model(tokens, seq) -> (hidden, aux, state)`; logits are asked for apart."""

    def __init__(self, config: ModelConfig, *, key: Array):
        D, V = config.width, config.rows
        keys = jax.random.split(key, 4)
        first, layers, repeats, last = config.plan()
        self.config = config
        self.embed = Embedding(V, D, config.embed, config.positions, config.norm, keys[0])
        self.first = nnx.List(_blocks(config, first, jax.random.fold_in(keys[1], 0)))
        self.blocks = nnx.List(
            stacked(
                lambda k, entry=entry: _block(config, entry, k),  # type: ignore[misc]
                jax.random.split(jax.random.fold_in(keys[2], i), repeats),
            )
            for i, entry in enumerate(layers)
        )
        self.last = nnx.List(_blocks(config, last, jax.random.fold_in(keys[1], 1)))
        if config.final_norm:
            self.norm = Norm(D, config.norm)
        self.head = Head(V, D, config.head, key=keys[3])
        if config.dtype == "float64":
            _widen(self)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        seq: Sequence,
        *,
        state: State | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Aux, State | None]:
        """Hidden vectors after the last norm; `key=None` means no dropout."""
        keys = split(key, 4)
        with jax.named_scope("embed"):
            x = self.embed(tokens, seq, jnp.dtype(self.config.dtype), keys[0])
        old = State(*_none(self)) if state is None else state
        x, aux_first, first = self._each(self.first, x, seq, old.first, keys[1])
        x, aux, blocks = self._repeats(x, seq, old.blocks, keys[2])
        x, aux_last, last = self._each(self.last, x, seq, old.last, keys[3])
        if self.config.final_norm:
            x = self.norm(x)
        new = None if state is None else State(first, blocks, last)
        return x, _total([*aux_first, *aux, *aux_last]), new

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores of every id; those of padding ids are the lowest number there is."""
        head = self.head_weights()
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        table = head.table.astype(hidden.dtype)
        y = head.scale * jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=wide)
        y = y if head.bias is None else y + head.bias
        y = head.cap * jnp.tanh(y / head.cap) if head.cap else y
        return jnp.where(jnp.arange(y.shape[-1]) < head.vocab, y, jnp.finfo(wide).min)

    def head_weights(self) -> HeadWeights:
        cfg = self.config.head
        table = self.embed.table if cfg.tied else self.head.table
        bias = self.head.bias[...] if cfg.bias else None
        return HeadWeights(table[...], bias, self.config.vocab, cfg.scale, cfg.cap)

    def start(self, batch: int, capacity: int) -> State:
        """An empty state for `batch` rows of at most `capacity` tokens, in the compute dtype."""
        dtype = jnp.dtype(self.config.dtype)
        first, layers, repeats, last = self.config.plan()

        def empty(block: Any) -> Any:
            return block.mixer.start(batch, capacity, dtype)

        def repeated(block: Any) -> Any:
            one = empty(block)
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (repeats, *a.shape)), one)

        return State(
            [empty(b) for b in self.first],
            [repeated(b) for b in self.blocks],
            [empty(b) for b in self.last],
        )

    def _each(self, blocks, x, seq, states, key):
        auxes, new = [], []
        for block, state, k in zip(blocks, states, split(key, len(blocks)), strict=True):
            x, aux, state = self._remat(_run)(block, x, seq, state, k)
            auxes.append(aux)
            new.append(state)
        return x, auxes, new

    def _repeats(self, x, seq, states, key):
        repeats = self.config.plan()[2]

        def body(x, repeat):
            blocks, states, k = repeat
            auxes, new = [], []
            for block, state, kk in zip(blocks, states, split(k, len(blocks)), strict=True):
                x, aux, state = _run(block, x, seq, state, kk)
                auxes.append(aux)
                new.append(state)
            return x, (auxes, new)

        xs = (list(self.blocks), states, None if key is None else jax.random.split(key, repeats))
        with jax.named_scope("blocks"):
            if self.config.scan:
                x, (auxes, new) = jax.lax.scan(self._remat(body), x, xs)
            else:
                x, (auxes, new) = _unrolled(self._remat(body), x, xs, repeats)
        return x, jax.tree.map(lambda a: jnp.sum(a, axis=0), auxes), new

    def _remat(self, function):
        if self.config.remat == "none":
            return function
        policy = POLICIES[self.config.remat]
        return jax.checkpoint(function, policy=policy, prevent_cse=not self.config.scan)


def _block(config: ModelConfig, entry: Entry, key: Array) -> Block:
    D, keys = config.width, jax.random.split(key)
    scale = (2 * config.depth) ** -0.5  # the residual stream keeps its size (GPT-2, section 2.3)
    mixer = config.part(entry.mixer, entry.mixer_variant)
    channel = config.part(entry.channel, entry.channel_variant)
    return Block(
        *(D, config.block, config.norm),
        MIXERS[entry.mixer](D, mixer, key=keys[0], scale=scale),
        CHANNELS[entry.channel](D, channel, key=keys[1], scale=scale),
    )


def _blocks(config: ModelConfig, entries: list[Entry], key: Array) -> list[Block]:
    return [_block(config, entry, jax.random.fold_in(key, i)) for i, entry in enumerate(entries)]


def _run(block, x, seq, state, key):
    return block(x, seq, state=state, key=key)


def _unrolled(body, x, xs, repeats: int):
    outs = []
    for i in range(repeats):
        x, out = body(x, jax.tree.map(lambda a: a[i], xs))  # noqa: B023
        outs.append(out)
    return x, jax.tree.map(lambda *a: jnp.stack(a), *outs)


def _none(model: Model) -> tuple[list[None], ...]:
    return tuple([None] * len(blocks) for blocks in (model.first, model.blocks, model.last))


def _total(auxes: list[Aux]) -> Aux:
    total: Aux = {}
    for aux in auxes:
        for name, (amount, weight) in aux.items():
            old = total.get(name, Amount(jnp.zeros(()), jnp.zeros(())))
            total[name] = Amount(old.sum + amount, old.weight + weight)
    return total


def _widen(model: Model) -> None:
    for param in jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        param.set_value(param[...].astype(jnp.float64))
