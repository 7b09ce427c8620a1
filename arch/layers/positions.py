"""Position encodings: linear biases (ALiBi, arXiv:2108.12409), learned absolute and relative ones.

All use explicit positions, which restart with every packed document. Rotary encodings are in
`arch/layers/rope.py`.
"""

import functools
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.sharding import P, make_param
from errors import ConfigError
from ops.attention.attention import TokenIndex
from settings.types import NonNegativeInt, PositiveInt, Range, config


@config
class PositionsConfig:
    """Learned positions: an absolute table at the embedding, or T5's relative bias in attention."""

    learned: bool = False  # Add a learned table of absolute positions to the embedding.
    # Number of positions in the learned table; 0: train.seq_len.
    max_length: NonNegativeInt = 0
    offset: NonNegativeInt = 0  # Row of the learned table that holds position 0 (OPT: 2).
    # Number of distance buckets for attention.position_encoding=relative.
    num_buckets: Annotated[int, Range(low=4)] = 32
    max_distance: PositiveInt = 128  # Distances from this one on share the last bucket.

    def check(self) -> None:
        """Checks the buckets.

        Raises:
            ConfigError: if `max_distance` leaves no room for logarithmic buckets.
        """
        if self.max_distance <= self.num_buckets // 2:
            raise ConfigError(
                f"positions.max_distance {self.max_distance} must be above half of "
                f"positions.num_buckets {self.num_buckets}; "
                f"nearest valid value: {self.num_buckets // 2 + 1}"
            )


class LearnedPositions(nnx.Module):
    """A table with one learned vector per absolute position (GPT-2, BERT, OPT)."""

    def __init__(self, width: int, cfg: PositionsConfig, *, key: Array):
        self.offset = cfg.offset
        init = nnx.initializers.normal(0.02)
        self.table = make_param(key, (cfg.max_length + cfg.offset, width), P(None, "data"), init)

    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Returns the vectors of the given positions."""
        return self.table[...][positions + self.offset]


class RelativePositionBias(nnx.Module):
    """A number per head and distance bucket that is added to scores (T5, arXiv:1910.10683)."""

    def __init__(self, width: int, heads: int, cfg: PositionsConfig, *, key: Array):
        self.max_distance = cfg.max_distance
        init = nnx.initializers.normal(width**-0.5)
        self.table = make_param(key, (cfg.num_buckets, heads), P(None, None), init, decay=False)

    def make_bias(self, causal: bool) -> jax.tree_util.Partial:
        """Returns the function (queries, keys) -> bias [B H T S] that attention takes."""
        return jax.tree_util.Partial(
            functools.partial(_relative_bias, causal=causal, max_distance=self.max_distance),
            self.table[...],
        )

    @staticmethod
    def params(heads: int, cfg: PositionsConfig) -> int:
        """Returns the number of parameters."""
        return cfg.num_buckets * heads


def _relative_bias(
    table: Float[Array, "buckets H"],
    queries: TokenIndex,
    keys: TokenIndex,
    *,
    causal: bool,
    max_distance: int,
) -> Float[Array, "B H T S"]:
    offset = keys.positions[:, None, :] - queries.positions[:, :, None]
    bias = table[relative_position_bucket(offset, table.shape[0], max_distance, causal=causal)]
    return jnp.moveaxis(bias, -1, 1)


def relative_position_bucket(
    relative_position: Int[Array, "..."], num_buckets: int, max_distance: int, *, causal: bool
) -> Int[Array, "..."]:
    """Returns T5's bucket of a key at `relative_position` (key minus query) from its query.

    Half of the buckets hold one distance each. The buckets of the other half grow with the
    logarithm of the distance, up to `max_distance`. If both sides are visible, keys after the query
    have their own half of all buckets.
    """
    half, upper = num_buckets // 2, jnp.zeros((), jnp.int32)
    if not causal:
        num_buckets, half = half, half // 2
        upper = jnp.where(relative_position > 0, num_buckets, 0)
    far = jnp.maximum(-relative_position, 0) if causal else jnp.abs(relative_position)
    ratio = jnp.log(jnp.maximum(far, 1) / half) / math.log(max_distance / half)
    slow = half + (ratio * (num_buckets - half)).astype(jnp.int32)
    return upper + jnp.where(far < half, far, jnp.minimum(slow, num_buckets - 1))


def alibi_slopes(heads: int) -> np.ndarray:
    """Returns ALiBi's slopes [H], which fall geometrically over the heads.

    They are 2^(-8k/p) for k = 1..p, where p is the largest power of two that is at most `heads`.
    The remaining heads get the odd k of the sequence for 2p.
    """
    p = 2 ** math.floor(math.log2(heads))
    first = 2.0 ** (-8 * np.arange(1, p + 1) / p)
    remaining = 2.0 ** (-8 * np.arange(1, 2 * (heads - p), 2) / (2 * p))
    return np.concatenate([first, remaining])


def alibi_bias(
    queries: TokenIndex, keys: TokenIndex, heads: int, dtype: jnp.dtype
) -> Float[Array, "B H T S"]:
    """Computes -slope * |distance|, in at least float32.

    Under causal views this is ALiBi's bias up to a constant per query, which softmax removes.
    """
    distance = jnp.abs(queries.positions[:, :, None] - keys.positions[:, None, :])
    slopes = jnp.asarray(alibi_slopes(heads), jnp.promote_types(dtype, jnp.float32))
    return -slopes[:, None, None] * distance[:, None].astype(slopes.dtype)


def alibi_bias_bfloat16(
    queries: TokenIndex, keys: TokenIndex, heads: int, scale: float, dtype: jnp.dtype
) -> Float[Array, "B H T S"]:
    """Computes scale * slope * key position with slope, position and product in bfloat16.

    Falcon-RW was trained with this rounding, which makes the bias depend on absolute positions.
    """

    def rounded(x: Array) -> Array:
        # The compiler would remove a cast to bfloat16 and back.
        return jax.lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)

    slopes = rounded(jnp.asarray(alibi_slopes(heads), jnp.float32))
    rise = rounded(slopes[:, None, None] * rounded(keys.positions[:, None, None, :]))
    return scale * rise.astype(jnp.promote_types(dtype, jnp.float32))
