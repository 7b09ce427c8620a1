"""Rotary positions (arXiv:2104.09864), and the ways to stretch them over longer rows.

Feature pair i of r turns by position * inverse_i, by default theta^(-2i/r). Stretched are

linear    all by 1/factor (arXiv:2306.15595)
dynamic   theta grows with the rows that are longer than `original` (NTK-aware)
llama3    slow pairs by 1/factor, fast ones not, a ramp between (Llama 3, arXiv:2407.21783)
yarn      the same with a ramp over i, and larger scores (arXiv:2309.00071)
longrope  each by its own factor, other ones for rows longer than `original` (arXiv:2402.13753)

`dynamic` and `longrope` read the length off the largest position of the batch: what they compute
for a token depends on how long the rows are, and keys that decoding has cached stay as they were.
"""

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from errors import ConfigError
from schema import Natural, NonNegative, Positive, config


@config
class RopeConfig:
    theta: Positive = 10000.0  # longest wavelength / 2 pi
    width: Natural = 0  # features of a head that turn; 0: all
    style: Literal["half", "pairs"] = "half"  # (i, i + r/2), or (2i, 2i + 1) as in GPT-J
    scaling: Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"] = "none"
    factor: Positive = 1.0  # how much longer rows get
    original: Natural = 0  # positions before that
    low: Positive = 1.0  # llama3: turns over `original` below which a pair is slow
    high: Positive = 4.0  # llama3: above which it is fast
    beta_fast: Positive = 32.0  # yarn: turns over `original` of a fast pair
    beta_slow: Positive = 1.0  # yarn: of a slow one
    truncate: bool = True  # yarn: the ramp begins and ends at whole pairs
    magnitude: NonNegative = 0.0  # of what is turned; 0: what the scaling implies
    short: tuple[float, ...] = ()  # longrope: a divisor a pair, up to `original`
    long: tuple[float, ...] = ()  # longrope: and beyond

    def check(self) -> None:
        if self.scaling in ("dynamic", "llama3", "yarn", "longrope") and not self.original:
            raise ConfigError(
                f"rope.original is 0, rope.scaling {self.scaling!r} needs the positions that the "
                "model was first trained on; set it, as 4096"
            )
        if self.scaling == "longrope" and (not self.short or len(self.short) != len(self.long)):
            raise ConfigError(
                f"rope.short has {len(self.short)} factors and rope.long {len(self.long)}; "
                "longrope needs half the turned width of each"
            )
        if self.scaling == "llama3" and self.low >= self.high:
            raise ConfigError(f"rope.low {self.low:g} must be below rope.high {self.high:g}")


def rope(
    x: Float[Array, "B T H K"], positions: Int[Array, "B T"], cfg: RopeConfig
) -> Float[Array, "B T H K"]:
    """Turn pairs of features by angle position * inverse_i, i = 0 .. r/2."""
    r = cfg.width or x.shape[-1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    inverse = jnp.asarray(inverses(cfg, r, positions), wide)
    angle, size = positions[..., None, None].astype(wide) * inverse, magnitude(cfg)
    return rotate(x, size * jnp.cos(angle), size * jnp.sin(angle), cfg.style)


def inverses(cfg: RopeConfig, r: int, positions: Int[Array, "B T"]) -> Array | np.ndarray:
    """[r/2] angles per position; a constant, but where the length of the rows counts."""
    exponent = np.arange(0, r, 2) / r
    plain, f, old = cfg.theta**-exponent, cfg.factor, cfg.original
    if cfg.scaling == "linear":
        return plain / f
    if cfg.scaling == "llama3":
        turns = old * plain / (2 * math.pi)
        fast = np.clip((turns - cfg.low) / (cfg.high - cfg.low), 0, 1)
        return plain * (fast + (1 - fast) / f)
    if cfg.scaling == "yarn":
        slow = _ramp(cfg, r)
        return plain * (1 - slow + slow / f)
    if cfg.scaling == "dynamic":
        length = _length(positions, old)
        grown = cfg.theta * (f * length / old - (f - 1)) ** (r / (r - 2))
        return grown ** -jnp.asarray(exponent, length.dtype)
    if cfg.scaling == "longrope":
        if len(cfg.short) != r // 2:
            raise ConfigError(f"rope.short has {len(cfg.short)} factors, must have {r // 2}")
        longer = _length(positions, old) > old
        return jnp.where(longer, plain / np.array(cfg.long), plain / np.array(cfg.short))
    return plain


def magnitude(cfg: RopeConfig) -> float:
    """What the turned features are multiplied by, so that scores grow by its square."""
    if cfg.magnitude:
        return cfg.magnitude
    if cfg.scaling == "yarn" and cfg.factor > 1:
        return 0.1 * math.log(cfg.factor) + 1  # arXiv:2309.00071, section 3.4
    if cfg.scaling == "longrope" and cfg.factor > 1:
        return math.sqrt(1 + math.log(cfg.factor) / math.log(cfg.original))
    return 1.0


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


def _ramp(cfg: RopeConfig, r: int) -> np.ndarray:
    """YaRN: 0 for pairs that turn fast, 1 for slow ones."""

    def pair(turns: float) -> float:
        return r * math.log(cfg.original / (2 * math.pi * turns)) / (2 * math.log(cfg.theta))

    low, high = pair(cfg.beta_fast), pair(cfg.beta_slow)
    if cfg.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, r - 1)
    high = high + 1e-3 if low == high else high
    return np.clip((np.arange(r // 2) - low) / (high - low), 0, 1)


def _length(positions: Int[Array, "B T"], least: int) -> Array:
    wide = jnp.promote_types(jnp.zeros(()).dtype, jnp.float32)
    return jnp.max(positions, initial=least - 1).astype(wide) + 1
