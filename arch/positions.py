"""Where a token stands: linear biases (ALiBi, arXiv:2108.12409), tables of positions or distances.

All read explicit positions, which restart with every packed document. Rotary ones: `arch/rope.py`.
"""

import functools
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.sharding import P, weight
from errors import ConfigError
from ops.attention import Tokens
from schema import Count, Natural, Range, config


@config
class PositionsConfig:
    """A learned table of absolute positions, added to the embedding; T5's of relative ones."""

    learned: bool = False
    length: Natural = 0  # positions the table holds; 0: train.length
    offset: Natural = 0  # row of position 0 (OPT: 2)
    buckets: Annotated[int, Range(low=4)] = 32  # of distances, for attention.position=relative
    distance: Count = 128  # from which on all are one bucket

    def check(self) -> None:
        if self.distance <= self.buckets // 2:
            raise ConfigError(
                f"positions.distance {self.distance} must be above half of positions.buckets "
                f"{self.buckets}; nearest: {self.buckets // 2 + 1}"
            )


class LearnedPositions(nnx.Module):
    """One vector a position (GPT-2, BERT, OPT)."""

    def __init__(self, width: int, cfg: PositionsConfig, *, key: Array):
        self.offset = cfg.offset
        init = nnx.initializers.normal(0.02)
        self.table = weight(key, (cfg.length + cfg.offset, width), P(None, "data"), init)

    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.table[...][positions + self.offset]


class RelativePositions(nnx.Module):
    """A number for each head and bucket of distances, added to scores (T5, arXiv:1910.10683)."""

    def __init__(self, width: int, heads: int, cfg: PositionsConfig, *, key: Array):
        self.distance = cfg.distance
        init = nnx.initializers.normal(width**-0.5)
        self.table = weight(key, (cfg.buckets, heads), P(None, None), init, decay=False)

    def bias(self, causal: bool) -> jax.tree_util.Partial:
        """bias(queries, keys), as attention takes it."""
        return jax.tree_util.Partial(
            functools.partial(_relative, causal=causal, distance=self.distance), self.table[...]
        )

    @staticmethod
    def params(heads: int, cfg: PositionsConfig) -> int:
        return cfg.buckets * heads


def _relative(
    table: Float[Array, "buckets H"], queries: Tokens, keys: Tokens, *, causal: bool, distance: int
) -> Float[Array, "B H T S"]:
    ahead = keys.positions[:, None, :] - queries.positions[:, :, None]
    found = table[bucket(ahead, table.shape[0], distance, causal=causal)]
    return jnp.moveaxis(found, -1, 1)


def bucket(
    ahead: Int[Array, "..."], buckets: int, distance: int, *, causal: bool
) -> Int[Array, "..."]:
    """T5's bucket of a key that stands `ahead` of its query.

    Half of the buckets hold one distance each, the others grow as its logarithm up to `distance`;
    where both sides are seen, what stands ahead has buckets of its own.
    """
    half, upper = buckets // 2, jnp.zeros((), jnp.int32)
    if not causal:
        buckets, half = half, half // 2
        upper = jnp.where(ahead > 0, buckets, 0)
    far = jnp.maximum(-ahead, 0) if causal else jnp.abs(ahead)
    ratio = jnp.log(jnp.maximum(far, 1) / half) / math.log(distance / half)
    slow = half + (ratio * (buckets - half)).astype(jnp.int32)
    return upper + jnp.where(far < half, far, jnp.minimum(slow, buckets - 1))


def alibi_slopes(heads: int) -> np.ndarray:
    """2^(-8k/p), k = 1..p, p the largest power of two <= heads; then odd k of 2p for the rest."""
    p = 2 ** math.floor(math.log2(heads))
    first = 2.0 ** (-8 * np.arange(1, p + 1) / p)
    rest = 2.0 ** (-8 * np.arange(1, 2 * (heads - p), 2) / (2 * p))
    return np.concatenate([first, rest])


def alibi(queries: Tokens, keys: Tokens, heads: int, dtype: jnp.dtype) -> Float[Array, "B H T S"]:
    """-slope * |distance|: what ALiBi adds to scores, up to a constant a row under causal views."""
    distance = jnp.abs(queries.positions[:, :, None] - keys.positions[:, None, :])
    slopes = jnp.asarray(alibi_slopes(heads), jnp.promote_types(dtype, jnp.float32))
    return -slopes[:, None, None] * distance[:, None].astype(slopes.dtype)


def alibi_rounded(
    queries: Tokens, keys: Tokens, heads: int, scale: float, dtype: jnp.dtype
) -> Float[Array, "B H T S"]:
    """scale * slope * position of the key, with slope, position and product in bfloat16.

    As Falcon-RW was trained: after the rounding the absolute position counts.
    """

    def rounded(x: Array) -> Array:  # a cast there and back would be compiled away
        return jax.lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)

    slopes = rounded(jnp.asarray(alibi_slopes(heads), jnp.float32))
    rise = rounded(slopes[:, None, None] * rounded(keys.positions[:, None, None, :]))
    return scale * rise.astype(jnp.promote_types(dtype, jnp.float32))
