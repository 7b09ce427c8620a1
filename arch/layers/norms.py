"""Normalization: RMSNorm (arXiv:1910.07467) and LayerNorm (arXiv:1607.06450).

Statistics are computed in at least float32, whatever the compute dtype is.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.sharding import make_vector
from ops.recompute import recompute
from settings.types import PositiveFloat, config


@config
class NormConfig:
    """The norms of a model: one kind for all blocks, embeddings and heads."""

    kind: Literal["rms", "layer"] = "rms"  # RMSNorm or LayerNorm.
    eps: PositiveFloat = 1e-6  # Number added to the mean square or variance.
    affine: bool = True  # Learn a scale (and, for LayerNorm, a bias).
    bias: bool = True  # Learn LayerNorm's bias; RMSNorm has none.
    unit_offset: bool = False  # Multiply by 1 + weight instead of the weight (Gemma).


class Norm(nnx.Module):
    """RMSNorm or LayerNorm over the last axis."""

    def __init__(self, width: int, cfg: NormConfig):
        self.cfg = cfg
        if cfg.affine:
            self.scale = make_vector(width, 0.0 if cfg.unit_offset else 1.0)
        if cfg.affine and cfg.bias and cfg.kind == "layer":
            self.bias = make_vector(width, 0.0)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalizes the last axis, in the dtype of x."""
        cfg = self.cfg
        scale = self.scale[...] if cfg.affine else None
        bias = self.bias[...] if cfg.affine and cfg.bias and cfg.kind == "layer" else None
        if scale is not None and cfg.unit_offset:
            scale = 1 + scale
        return (
            rms_norm(x, scale, cfg.eps)
            if cfg.kind == "rms"
            else layer_norm(x, scale, bias, cfg.eps)
        )

    @staticmethod
    def params(width: int, cfg: NormConfig) -> int:
        """Returns the number of parameters of one norm."""
        return width * cfg.affine * (2 if cfg.kind == "layer" and cfg.bias else 1)


@functools.partial(recompute, static_argnums=2)
def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"] | None, eps: float
) -> Float[Array, "... D"]:
    """Computes x / sqrt(mean(x^2) + eps) * scale; the backward pass keeps x alone."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide if scale is None else wide * scale).astype(x.dtype)


@functools.partial(recompute, static_argnums=(3, 4, 5))
def gated_rms_norm(
    x: Float[Array, "... C"],
    gate: Float[Array, "... C"],
    scale: Float[Array, " C"],
    eps: float,
    groups: int,
    norm_first: bool,
) -> Float[Array, "... C"]:
    """Computes RMSNorm of x silu(gate) in `groups` groups of channels (arXiv:2405.21060).

    With `norm_first` it computes RMSNorm of x, times silu(gate).
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    gate = jax.nn.silu(gate.astype(wide))
    y = x.astype(wide) if norm_first else x.astype(wide) * gate
    y = rms_norm(y.reshape(*y.shape[:-1], groups, x.shape[-1] // groups), None, eps).reshape(
        x.shape
    )
    y = y * scale
    return (y * gate if norm_first else y).astype(x.dtype)


@functools.partial(recompute, static_argnums=3)
def layer_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, " D"] | None,
    bias: Float[Array, " D"] | None,
    eps: float,
) -> Float[Array, "... D"]:
    """Computes (x - mean) / sqrt(variance + eps) * scale + bias, with the biased variance.

    The backward pass keeps x alone.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    wide = wide if scale is None else wide * scale
    return (wide if bias is None else wide + bias).astype(x.dtype)


@recompute
def unit_length(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """Computes x / sqrt(|x|^2 + 1e-6)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype)
