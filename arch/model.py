"""The one backbone: a stack of `mixer+channel` blocks between an embedding and a head.

A **mixer** lets tokens talk: `mixer(x, seq, *, state=None, memory=None, key=None) -> (y, state)`,
with `mixer.start(batch, capacity, dtype)` the empty state to decode from. A **channel** treats each
token by itself: `channel(x, seq, *, key=None) -> (y, aux)`, with `losses(cfg)` the coefficients of
what in `aux` is a loss. Both are built as `Part(D, cfg, key=key, scale=scale)` (`scale` of the
matrix that writes to the residual stream), say what they can do under each view, `views(cfg)`, bill
themselves, `cost(D, cfg, place)`, and say what tensor parallelism cuts along, `cuts(D, cfg)`. A
channel's `remedy` is the way out where a view is refused.

Left out on purpose: losses, data, devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.config import ModelConfig
from arch.dropout import split
from arch.embedding import Embedding, Head, HeadWeights
from arch.pooler import Pooler
from arch.sequence import Sequence
from arch.stack import Stack, State
from arch.terms import Aux


class Model(nnx.Module):
    """`model(tokens, seq) -> (hidden, aux, state)`; logits are asked for apart."""

    def __init__(self, config: ModelConfig, *, key: Array):
        D, V = config.width, config.rows
        keys = jax.random.split(key, 4)
        embed, norm = config.embed, config.norm
        self.config = config
        self.embed = Embedding(V, D, embed, config.positions, norm, keys[0])
        decodes = config.encoder.depth > 0
        self.encoder = Stack(config, config.encoder_plan(), key=keys[1]) if decodes else None
        self.stack = Stack(config, config.plan(), key=keys[2], decodes=decodes)
        self.head = Head(V, D, config.head, embed, norm, key=keys[3])
        pools = config.pooler.kind != "none"
        self.pooler = Pooler(D, config.pooler, key=jax.random.fold_in(key, 4)) if pools else None
        if config.dtype == "float64":
            _widen(self)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        seq: Sequence,
        *,
        state: State | None = None,
        source: tuple[Int[Array, "B S"], Sequence] | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Aux, State | None]:
        """Hidden vectors after the last norm; `key=None` means no dropout.

        `aux` has a number a layer of what channels report; an encoder's stand under "encoder/".
        An encoder-decoder needs `source`, or a state that has seen it.
        """
        keys, aux, memory = split(key, 4), Aux(), None
        if self.encoder is None and source is not None:
            raise ValueError("a source needs model.encoder.depth > 0")
        if self.encoder is not None and source is None and state is None:
            raise ValueError("model.encoder is there: give `source`, (tokens, Sequence)")
        if self.encoder is not None and source is not None:
            encoded, said = self.encode(*source, key=keys[0])
            aux = {f"encoder/{name}": amount for name, amount in said.items()}
            memory = encoded, source[1]
        with jax.named_scope("embed"):
            x = self.embed(tokens, seq, jnp.dtype(self.config.dtype), keys[1])
        x, said, new = self.stack(x, seq, state=state, memory=memory, key=keys[2])
        return x, aux | said, new

    def encode(
        self, tokens: Int[Array, "B S"], seq: Sequence, *, key: Array | None = None
    ) -> tuple[Float[Array, "B S D"], Aux]:
        """What the encoder makes of a source."""
        keys = split(key, 2)
        with jax.named_scope("encode"):
            x = self.embed(tokens, seq, jnp.dtype(self.config.dtype), keys[0])
            x, aux, _ = self.encoder(x, seq, key=keys[1])
        return x, aux

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores of every id; those of padding ids are the lowest number there is."""
        head = self.head_weights()
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        table, hidden = head.table.astype(hidden.dtype), self.features(hidden)
        y = head.scale * jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=wide)
        y = y if head.bias is None else y + head.bias
        y = head.cap * jnp.tanh(y / head.cap) if head.cap else y
        return jnp.where(jnp.arange(y.shape[-1]) < head.vocab, y, jnp.finfo(wide).min)

    def features(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T W"]:
        """What the head's table meets: the hidden vectors, but where a head transforms them."""
        return self.head.features(hidden)

    def head_weights(self) -> HeadWeights:
        """What makes logits of `features`."""
        cfg = self.config.head
        table = self.embed.table if cfg.tied else self.head.table
        bias = self.head.bias[...] if cfg.bias else None
        return HeadWeights(table[...], bias, self.config.vocab, cfg.scale, cfg.cap)

    def start(self, batch: int, capacity: int, *, source: int = 0) -> State:
        """An empty state for rows of at most `capacity` tokens (and `source` encoded ones)."""
        return self.stack.start(batch, capacity, source)


def _widen(model: Any) -> None:
    for param in jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        param.set_value(param[...].astype(jnp.float64))
