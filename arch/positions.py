"""Where a token stands: rotary angles, linear biases, a learned table.

RoPE (arXiv:2104.09864), ALiBi (arXiv:2108.12409). All read explicit positions, which restart with
every packed document.
"""

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.sharding import P, weight
from ops.attention import Tokens
from schema import Natural, Positive, config


@config
class RopeConfig:
    theta: Positive = 10000.0  # longest wavelength / 2 pi
    width: Natural = 0  # features of a head that turn; 0: all
    style: Literal["half", "pairs"] = "half"  # (i, i + r/2), or (2i, 2i + 1) as in GPT-J


@config
class PositionsConfig:
    """A learned table of absolute positions, added to the embedding."""

    learned: bool = False
    length: Natural = 0  # positions the table holds; 0: train.length
    offset: Natural = 0  # row of position 0 (OPT: 2)


class LearnedPositions(nnx.Module):
    """One vector a position (GPT-2, BERT, OPT)."""

    def __init__(self, width: int, cfg: PositionsConfig, *, key: Array):
        self.offset = cfg.offset
        init = nnx.initializers.normal(0.02)
        self.table = weight(key, (cfg.length + cfg.offset, width), P(None, "data"), init)

    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.table[...][positions + self.offset]


def rope(
    x: Float[Array, "B T H K"], positions: Int[Array, "B T"], cfg: RopeConfig
) -> Float[Array, "B T H K"]:
    """Turn pairs of features by angle position * theta^(-2i/r), i = 0 .. r/2."""
    r = cfg.width or x.shape[-1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    inverse = jnp.asarray(cfg.theta ** (-np.arange(0, r, 2) / r), wide)
    angle = positions[..., None, None].astype(wide) * inverse
    return rotate(x, jnp.cos(angle), jnp.sin(angle), cfg.style)


def rotate(
    x: Float[Array, "B T H K"],
    cos: Float[Array, "B T #H r"],
    sin: Float[Array, "B T #H r"],
    style: Literal["half", "pairs"],
) -> Float[Array, "B T H K"]:
    """Turn the first 2r features of `x`, paired by `style`; the others pass."""
    r = 2 * cos.shape[-1]
    turned, passed = x[..., :r].astype(cos.dtype), x[..., r:]
    if style == "half":
        a, b = jnp.split(turned, 2, axis=-1)
    else:
        a, b = turned[..., ::2], turned[..., 1::2]
    a, b = a * cos - b * sin, a * sin + b * cos
    turned = jnp.concatenate([a, b], -1) if style == "half" else jnp.stack([a, b], -1)
    return jnp.concatenate([turned.reshape(*x.shape[:-1], r).astype(x.dtype), passed], axis=-1)


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
