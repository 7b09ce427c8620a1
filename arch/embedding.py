"""Tokens in, logits out: the table, learned positions, and a head that may be the same table.

Every vocabulary is padded to a multiple of `model.vocab_multiple`; the logits of the padding are
masked, and it gets no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.dropout import dropout
from arch.norms import Norm, NormConfig
from arch.positions import LearnedPositions, PositionsConfig
from arch.sequence import Sequence
from arch.sharding import P, constrain, vector, weight
from schema import NonNegative, Positive, Rate, config


@config
class EmbedConfig:
    scale: Positive = 1.0  # of the vectors (Gemma: D^1/2)
    norm: bool = False  # LayerNorm or RMSNorm on them (BERT, BLOOM)
    dropout: Rate = 0.0


@config
class HeadConfig:
    tied: bool = True  # the table of the embedding is the head's
    bias: bool = False
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
        keys = jax.random.split(key)
        init = nnx.initializers.normal(0.02)
        self.table = weight(keys[0], (V, D), P("model", "data"), init, decay=False)
        if positions.learned:
            self.positions = LearnedPositions(D, positions, key=keys[1])
        if cfg.norm:
            self.norm = Norm(D, norm)

    def __call__(
        self, tokens: Int[Array, "B T"], seq: Sequence, dtype: jnp.dtype, key: Array | None
    ) -> Float[Array, "B T D"]:
        table = constrain(self.table[...].astype(dtype), P("model", None))
        x = constrain(table[tokens]) * jnp.asarray(self.cfg.scale, dtype)
        if hasattr(self, "positions"):
            x = x + self.positions(seq.positions).astype(dtype)
        if self.cfg.norm:
            x = self.norm(x)
        return dropout(x, self.cfg.dropout, key)

    @staticmethod
    def params(
        V: int, D: int, cfg: EmbedConfig, positions: PositionsConfig, norm: NormConfig
    ) -> int:
        rows = V + positions.learned * (positions.length + positions.offset)
        return rows * D + cfg.norm * Norm.params(D, norm)


class Head(nnx.Module):
    """The head's own weights: none if it is tied and without bias."""

    def __init__(self, V: int, D: int, cfg: HeadConfig, *, key: Array):
        if not cfg.tied:
            init = nnx.initializers.normal(0.02)
            self.table = weight(key, (V, D), P("model", "data"), init)
        if cfg.bias:
            self.bias = vector(V, 0.0)

    @staticmethod
    def params(V: int, D: int, cfg: HeadConfig) -> int:
        return (not cfg.tied) * V * D + cfg.bias * V
