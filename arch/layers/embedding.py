"""The embedding, with tables of tokens, positions and token types, and the output head.

The table of tokens is padded to a multiple of `model.vocab_multiple` rows. The logits of the
padding are masked, so its rows in the head get no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.layers.activations import ACTIVATIONS, Activation
from arch.layers.dropout import dropout
from arch.layers.linear import linear
from arch.layers.norms import Norm, NormConfig
from arch.layers.positions import LearnedPositions, PositionsConfig
from arch.sequence import SequenceInfo
from arch.sharding import P, constrain, make_matrix, make_param, make_vector
from settings.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, Probability, config

TABLE_STD = 0.02  # Standard deviation of the initial tables.


@config
class EmbedConfig:
    """The token embedding."""

    # Width of the table, with a projection to the model's width (OPT-350m); 0: the model's width.
    factorized_width: NonNegativeInt = 0
    # Number of token types with a learned vector each, as two sentences (BERT); 0: none.
    token_types: NonNegativeInt = 0
    scale: PositiveFloat = 1.0  # Factor of the token vectors (Gemma: D^1/2).
    norm: bool = False  # Normalize the embedded vectors (BERT, BLOOM).
    dropout: Probability = 0.0  # Dropout rate of the embedded vectors.


@config
class HeadConfig:
    """The output head, from hidden vectors to logits."""

    tied: bool = True  # Use the embedding's table as the output matrix.
    bias: bool = False  # Add a bias to the logits.
    mlm_transform: bool = False  # Transform hidden vectors by norm(act(w x)) first (BERT).
    mlm_transform_activation: Activation = "gelu"  # Activation of the transform.
    mlm_transform_bias: bool = True  # Add a bias in the transform, act(w x + b).
    scale: PositiveFloat = 1.0  # Factor of the logits before bias and softcap (T5: D^-1/2).
    logit_softcap: NonNegativeFloat = 0.0  # Bound c of the logits, c tanh(logit / c); 0: off.


class HeadWeights(NamedTuple):
    """The weights from features to logits; rows of the table from `vocab_size` on are padding."""

    table: Float[Array, "V features"]
    bias: Float[Array, " V"] | None
    vocab_size: int
    scale: float
    softcap: float


class Embedding(nnx.Module):
    """The sum of token, type and position vectors, with a norm and dropout if configured."""

    def __init__(
        self,
        V: int,
        D: int,
        cfg: EmbedConfig,
        positions: PositionsConfig,
        norm: NormConfig,
        key: Array,
    ):
        self.cfg = cfg
        keys, table_width = jax.random.split(key), cfg.factorized_width or D
        init = nnx.initializers.normal(TABLE_STD)
        self.table = make_param(keys[0], (V, table_width), P("model", "data"), init, decay=False)
        if cfg.factorized_width:
            self.w_in = make_matrix(
                jax.random.fold_in(key, 2), (table_width, D), P("model", "data")
            )
        if cfg.token_types:
            types_key = jax.random.fold_in(key, 3)
            self.types = make_param(types_key, (cfg.token_types, D), P(None, "data"), init)
        if positions.learned:
            self.positions = LearnedPositions(D, positions, key=keys[1])
        if cfg.norm:
            self.norm = Norm(D, norm)

    def __call__(
        self, tokens: Int[Array, "B T"], seq: SequenceInfo, dtype: jnp.dtype, key: Array | None
    ) -> Float[Array, "B T D"]:
        """Embeds tokens in `dtype`; a `key` of None means no dropout."""
        table = constrain(self.table[...].astype(dtype), P("model", None))
        x = constrain(table[tokens]) * jnp.asarray(self.cfg.scale, dtype)
        if self.cfg.factorized_width:
            x = linear(x, self.w_in[...])
        if self.cfg.token_types:
            kinds = jnp.zeros_like(tokens) if seq.token_type_ids is None else seq.token_type_ids
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
        """Returns the number of parameters."""
        rows = cfg.token_types + positions.learned * (positions.max_length + positions.offset)
        table = V * (cfg.factorized_width or D) + cfg.factorized_width * D
        return table + rows * D + cfg.norm * Norm.params(D, norm)


class OutputHead(nnx.Module):
    """The weights of the head besides a tied table; a tied head without options has none."""

    def __init__(
        self,
        V: int,
        D: int,
        cfg: HeadConfig,
        embed: EmbedConfig,
        norm: NormConfig,
        *,
        key: Array,
        table_std: float = TABLE_STD,
    ):
        keys, table_width = (key, *jax.random.split(key)), embed.factorized_width or D
        self.cfg, self.has_projection = cfg, bool(embed.factorized_width)
        if not cfg.tied:
            init = nnx.initializers.normal(table_std)
            self.table = make_param(keys[0], (V, table_width), P("model", "data"), init)
        if cfg.bias:
            self.bias = make_vector(V, 0.0)
        if cfg.mlm_transform:
            self.w_transform = make_matrix(keys[1], (D, D), P("data", "model"))
            self.norm = Norm(D, norm)
            if cfg.mlm_transform_bias:
                self.b_transform = make_vector(D, 0.0)
        if embed.factorized_width:
            self.w_out = make_matrix(keys[2], (D, table_width), P("model", "data"))

    def features(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T features"]:
        """Returns the hidden vectors after the transform and the projection."""
        if self.cfg.mlm_transform:
            bias = self.b_transform[...] if self.cfg.mlm_transform_bias else None
            act = ACTIVATIONS[self.cfg.mlm_transform_activation]
            hidden = self.norm(act(linear(hidden, self.w_transform[...], bias)))
        return linear(hidden, self.w_out[...]) if self.has_projection else hidden

    @staticmethod
    def params(V: int, D: int, cfg: HeadConfig, embed: EmbedConfig, norm: NormConfig) -> int:
        """Returns the number of parameters besides a tied table."""
        table = (not cfg.tied) * V * (embed.factorized_width or D) + cfg.bias * V
        transform = D * D + cfg.mlm_transform_bias * D + Norm.params(D, norm)
        return table + cfg.mlm_transform * transform + embed.factorized_width * D

    @staticmethod
    def flops(V: int, D: int, cfg: HeadConfig, embed: EmbedConfig) -> float:
        """Returns the FLOPs of the logits of one token, with the transform and the projection."""
        return 2.0 * (
            (embed.factorized_width or D) * V
            + cfg.mlm_transform * D * D
            + embed.factorized_width * D
        )
