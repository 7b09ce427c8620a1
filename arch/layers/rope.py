"""Rotary position encodings (arXiv:2104.09864) and the ways to scale them to longer rows.

Feature pair i of r / 2 rotates by the angle position * inv_freq_i, by default with
inv_freq_i = theta^(-2i/r). The scalings change inv_freq:

linear    divides all of them by `factor` (arXiv:2306.15595)
dynamic   raises theta for rows longer than `original_length` (NTK-aware)
llama3    divides those of slow pairs, with a ramp to fast ones (Llama 3, arXiv:2407.21783)
yarn      does so with a ramp over i, and raises the scores (arXiv:2309.00071)
longrope  divides each by its own number, which differs for rows longer than `original_length`
          (arXiv:2402.13753)

`dynamic` and `longrope` take the row length from the largest position of the batch. Their result
for a token therefore depends on the length of the rows, and keys in a decoding cache keep the
rotation with which they were written.
"""

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from errors import ConfigError
from settings.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, config


@config
class RopeConfig:
    """Rotary position encodings and their scaling to longer rows."""

    theta: PositiveFloat = 10000.0  # Base of the frequencies: the longest wavelength / 2 pi.
    rotary_dim: NonNegativeInt = 0  # Number of features of a head that are rotated (r); 0: all.
    # Features of a pair: i and i + r/2, or 2i and 2i + 1 (GPT-J).
    style: Literal["half", "interleaved"] = "half"
    # Change of the frequencies for rows longer than the model was first trained on.
    scaling: Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"] = "none"
    factor: PositiveFloat = 1.0  # Ratio of the new row length to the original one.
    original_length: NonNegativeInt = 0  # Row length of the first training, in positions.
    # llama3: pairs with fewer rotations than this over the original length are slow.
    low_freq_factor: PositiveFloat = 1.0
    # llama3: pairs with more rotations than this over the original length are fast.
    high_freq_factor: PositiveFloat = 4.0
    # yarn: number of rotations over the original length of a fast pair, where the ramp begins.
    beta_fast: PositiveFloat = 32.0
    # yarn: number of rotations over the original length of a slow pair, where the ramp ends.
    beta_slow: PositiveFloat = 1.0
    truncate: bool = True  # yarn: round both ends of the ramp to whole pairs.
    # Factor of the rotated features; 0: the value that the scaling implies.
    attention_factor: NonNegativeFloat = 0.0
    # longrope: a divisor per pair for rows up to the original length.
    short_factor: tuple[float, ...] = ()
    # longrope: a divisor per pair for rows longer than the original length.
    long_factor: tuple[float, ...] = ()

    def check(self) -> None:
        """Checks that the settings which the scaling needs are set.

        Raises:
            ConfigError: if one of them is missing or two of them contradict each other.
        """
        if self.scaling in ("dynamic", "llama3", "yarn", "longrope") and not self.original_length:
            raise ConfigError(
                f"rope.original_length is 0, rope.scaling {self.scaling!r} needs the row length of "
                "the first training; set it, as 4096"
            )
        if self.scaling == "longrope" and (
            not self.short_factor or len(self.short_factor) != len(self.long_factor)
        ):
            raise ConfigError(
                f"rope.short_factor has {len(self.short_factor)} factors and rope.long_factor "
                f"{len(self.long_factor)}; longrope needs half of rope.rotary_dim of each"
            )
        if self.scaling == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"rope.low_freq_factor {self.low_freq_factor:g} must be below "
                f"rope.high_freq_factor {self.high_freq_factor:g}"
            )


def apply_rope(
    x: Float[Array, "B T H K"], positions: Int[Array, "B T"], cfg: RopeConfig
) -> Float[Array, "B T H K"]:
    """Rotates feature pair i of each head by the angle position * inv_freq_i."""
    r = cfg.rotary_dim or x.shape[-1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    inverse = jnp.asarray(inv_freq(cfg, r, positions), wide)
    angle, size = positions[..., None, None].astype(wide) * inverse, attention_factor(cfg)
    return rotate(x, size * jnp.cos(angle), size * jnp.sin(angle), cfg.style)


def inv_freq(cfg: RopeConfig, rotary_dim: int, positions: Int[Array, "B T"]) -> Array | np.ndarray:
    """Returns the angle per position of each pair [r/2].

    The result is a constant, except for the scalings that depend on the length of the rows.

    Raises:
        ConfigError: if `short_factor` does not have one number per pair.
    """
    exponent = np.arange(0, rotary_dim, 2) / rotary_dim
    unscaled, factor, original = cfg.theta**-exponent, cfg.factor, cfg.original_length
    if cfg.scaling == "linear":
        return unscaled / factor
    if cfg.scaling == "llama3":
        rotations = original * unscaled / (2 * math.pi)
        fast = np.clip(
            (rotations - cfg.low_freq_factor) / (cfg.high_freq_factor - cfg.low_freq_factor), 0, 1
        )
        return unscaled * (fast + (1 - fast) / factor)
    if cfg.scaling == "yarn":
        slow = _yarn_ramp(cfg, rotary_dim)
        return unscaled * (1 - slow + slow / factor)
    if cfg.scaling == "dynamic":
        length = _effective_length(positions, original)
        growth = factor * length / original - (factor - 1)
        theta = cfg.theta * growth ** (rotary_dim / (rotary_dim - 2))
        return theta ** -jnp.asarray(exponent, length.dtype)
    if cfg.scaling == "longrope":
        if len(cfg.short_factor) != rotary_dim // 2:
            raise ConfigError(
                f"rope.short_factor has {len(cfg.short_factor)} factors, "
                f"must have {rotary_dim // 2}"
            )
        is_longer = _effective_length(positions, original) > original
        return jnp.where(
            is_longer, unscaled / np.array(cfg.long_factor), unscaled / np.array(cfg.short_factor)
        )
    return unscaled


def attention_factor(cfg: RopeConfig) -> float:
    """Returns the factor of the rotated features; scores grow by its square."""
    if cfg.attention_factor:
        return cfg.attention_factor
    if cfg.scaling == "yarn" and cfg.factor > 1:
        return 0.1 * math.log(cfg.factor) + 1  # arXiv:2309.00071, section 3.4
    if cfg.scaling == "longrope" and cfg.factor > 1:
        return math.sqrt(1 + math.log(cfg.factor) / math.log(cfg.original_length))
    return 1.0


def rotate(
    x: Float[Array, "B T H K"],
    cos: Float[Array, "B T #H r"],
    sin: Float[Array, "B T #H r"],
    style: Literal["half", "interleaved"],
) -> Float[Array, "B T H K"]:
    """Rotates the first 2r features of `x`, paired by `style`; the others stay unchanged."""
    r = 2 * cos.shape[-1]
    rotated, unchanged = x[..., :r].astype(cos.dtype), x[..., r:]
    if style == "half":
        a, b = jnp.split(rotated, 2, axis=-1)
    else:
        a, b = rotated[..., ::2], rotated[..., 1::2]
    a, b = a * cos - b * sin, a * sin + b * cos
    rotated = jnp.concatenate([a, b], -1) if style == "half" else jnp.stack([a, b], -1)
    return jnp.concatenate([rotated.reshape(*x.shape[:-1], r).astype(x.dtype), unchanged], axis=-1)


def _yarn_ramp(cfg: RopeConfig, rotary_dim: int) -> np.ndarray:
    """Returns YaRN's ramp [r/2]: 0 for fast pairs, 1 for slow ones."""

    def pair(rotations: float) -> float:
        return (
            rotary_dim
            * math.log(cfg.original_length / (2 * math.pi * rotations))
            / (2 * math.log(cfg.theta))
        )

    low, high = pair(cfg.beta_fast), pair(cfg.beta_slow)
    if cfg.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    high = high + 1e-3 if low == high else high
    return np.clip((np.arange(rotary_dim // 2) - low) / (high - low), 0, 1)


def _effective_length(positions: Int[Array, "B T"], min_length: int) -> Array:
    wide = jnp.promote_types(jnp.zeros(()).dtype, jnp.float32)
    return jnp.max(positions, initial=min_length - 1).astype(wide) + 1
