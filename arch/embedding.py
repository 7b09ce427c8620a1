"""Tokens in, logits out: tables of tokens, positions and types, and a head that may be the first.

Every vocabulary is padded to a multiple of `model.vocab_multiple`; the logits of the padding are
masked, and it gets no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.dropout import dropout
from arch.linear import linear
from arch.mlp import ACTIVATIONS, Activation
from arch.norms import Norm, NormConfig
from arch.positions import LearnedPositions, PositionsConfig
from arch.sequence import Sequence
from arch.sharding import P, constrain, matrix, vector, weight
from schema import Natural, NonNegative, Positive, Rate, config


@config
class EmbedConfig:
    width: Natural = 0  # of the table, with a projection to D (OPT-350m); 0: D
    types: Natural = 0  # rows of a table of token types, as of two sentences (BERT); 0: none
    scale: Positive = 1.0  # of the vectors (Gemma: D^1/2)
    norm: bool = False  # LayerNorm or RMSNorm on them (BERT, BLOOM)
    dropout: Rate = 0.0


@config
class HeadConfig:
    tied: bool = True  # the table of the embedding is the head's
    bias: bool = False
    transform: bool = False  # norm(act(w x)) of the hidden vectors first (BERT)
    transform_activation: Activation = "gelu"  # act
    transform_bias: bool = True  # of w
    scale: Positive = 1.0  # of the hidden vectors (T5: D^-1/2)
    cap: NonNegative = 0.0  # c: logits become c tanh(logit / c); 0: off


class HeadWeights(NamedTuple):
    """What turns hidden vectors into logits; `vocab` of the rows are tokens, the rest padding."""

    table: Float[Array, "V D"]
    bias: Float[Array, " V"] | None
    vocab: int
    scale: float
    cap: float


class Embedding(nnx.Module):
    def __init__(
        self, V: int, D: int, cfg: EmbedConfig, positions: PositionsConfig, norm: NormConfig, key
    ):
        self.cfg = cfg
        keys, W = jax.random.split(key), cfg.width or D
        init = nnx.initializers.normal(0.02)
        self.table = weight(keys[0], (V, W), P("model", "data"), init, decay=False)
        if cfg.width:
            self.w_in = matrix(jax.random.fold_in(key, 2), (W, D), P("model", "data"))
        if cfg.types:
            other = jax.random.fold_in(key, 3)
            self.types = weight(other, (cfg.types, D), P(None, "data"), init)
        if positions.learned:
            self.positions = LearnedPositions(D, positions, key=keys[1])
        if cfg.norm:
            self.norm = Norm(D, norm)

    def __call__(
        self, tokens: Int[Array, "B T"], seq: Sequence, dtype: jnp.dtype, key: Array | None
    ) -> Float[Array, "B T D"]:
        table = constrain(self.table[...].astype(dtype), P("model", None))
        x = constrain(table[tokens]) * jnp.asarray(self.cfg.scale, dtype)
        if self.cfg.width:
            x = linear(x, self.w_in[...])
        if self.cfg.types:
            kinds = jnp.zeros_like(tokens) if seq.types is None else seq.types
            x = x + self.types[...][kinds].astype(dtype)
        if hasattr(self, "positions"):
            x = x + self.positions(seq.positions).astype(dtype)
        if self.cfg.norm:
            x = self.norm(x)
        return dropout(x, self.cfg.dropout, key)

    @staticmethod
    def params(
        V: int, D: int, cfg: EmbedConfig, positions: PositionsConfig, norm: NormConfig
    ) -> int:
        rows = cfg.types + positions.learned * (positions.length + positions.offset)
        table = V * (cfg.width or D) + cfg.width * D
        return table + rows * D + cfg.norm * Norm.params(D, norm)


class Head(nnx.Module):
    """The head's own weights: none if it is tied and plain."""

    def __init__(
        self, V: int, D: int, cfg: HeadConfig, embed: EmbedConfig, norm: NormConfig, *, key: Array
    ):
        keys, W = (key, *jax.random.split(key)), embed.width or D
        self.cfg, self.projects = cfg, bool(embed.width)
        if not cfg.tied:
            init = nnx.initializers.normal(0.02)
            self.table = weight(keys[0], (V, W), P("model", "data"), init)
        if cfg.bias:
            self.bias = vector(V, 0.0)
        if cfg.transform:
            self.w_transform = matrix(keys[1], (D, D), P("data", "model"))
            self.norm = Norm(D, norm)
            if cfg.transform_bias:
                self.b_transform = vector(D, 0.0)
        if embed.width:
            self.w_out = matrix(keys[2], (D, W), P("model", "data"))

    def features(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T W"]:
        """What the table meets."""
        if self.cfg.transform:
            bias = self.b_transform[...] if self.cfg.transform_bias else None
            act = ACTIVATIONS[self.cfg.transform_activation]
            hidden = self.norm(act(linear(hidden, self.w_transform[...], bias)))
        return linear(hidden, self.w_out[...]) if self.projects else hidden

    @staticmethod
    def params(V: int, D: int, cfg: HeadConfig, embed: EmbedConfig, norm: NormConfig) -> int:
        table = (not cfg.tied) * V * (embed.width or D) + cfg.bias * V
        transform = D * D + cfg.transform_bias * D + Norm.params(D, norm)
        return table + cfg.transform * transform + embed.width * D

    @staticmethod
    def flops(V: int, D: int, cfg: HeadConfig, embed: EmbedConfig) -> float:
        """Of the logits of one token."""
        return 2.0 * ((embed.width or D) * V + cfg.transform * D * D + embed.width * D)
