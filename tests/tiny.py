"""Tiny models and rows, small enough to compile in a second."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from arch import CHANNELS, MIXERS, Model, ModelConfig, Sequence
from arch.attention import AttentionConfig
from arch.directions import DirectionsConfig
from arch.gated_conv import GatedConvConfig
from arch.gated_deltanet import GatedDeltaNetConfig
from arch.mamba1 import Mamba1Config
from arch.mamba2 import Mamba2Config
from arch.moe import MoeConfig
from arch.positions import PositionsConfig
from arch.rope import RopeConfig

WIDTH, VOCAB = 16, 40


def attention(**settings: Any) -> dict[str, Any]:
    return {"attention": AttentionConfig(**settings)}


# Parts as small as the width, where their defaults are not.
SMALL: dict[str, Any] = {
    "mamba1": Mamba1Config(state=4),
    "mamba2": Mamba2Config(state=6, head_width=8, chunk=4),
    "gated_deltanet": GatedDeltaNetConfig(heads=2, chunk=4),
    "moe": MoeConfig(experts=4, width=8),
}
BOTH = {"directions": DirectionsConfig(weights="shared")}

# What a mixer is also tested as: settings of a model that change its mathematics.
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "attention": {
        "default": {},
        "grouped": attention(kv_heads=2, bias_qkv=True, bias_out=True, qk_norm="head"),
        "multi-query window": attention(kv_heads=1, window=3, softcap=2.0, qk_norm="full"),
        "alibi": attention(position="alibi", heads=2, head_width=6, scale=0.3, clip=1.5),
        "partial rope": attention(rope=RopeConfig(width=2, style="pairs", theta=100.0)),
        "relative": attention(position="relative")
        | {"positions": PositionsConfig(buckets=8, distance=8)},
    },
    "local_attention": {"default": {"local_attention": AttentionConfig(window=3)}},
    "mamba1": {
        "default": {},
        "both": BOTH | {"mamba1": Mamba1Config(state=4, rank=3, bias=True, norms=True)},
    },
    "mamba2": {
        "default": {},
        "both": {
            "directions": DirectionsConfig(weights="separate", merge="gate"),
            "mamba2": Mamba2Config(
                state=6, head_width=8, groups=2, chunk=4, bias=True, dt_low=0.01, dt_high=9.0
            ),
        },
    },
    "gated_deltanet": {
        "default": {},
        "signed": {"gated_deltanet": GatedDeltaNetConfig(heads=1, signed=True, chunk=4)} | BOTH,
    },
    "lstm": {"default": BOTH},
    "gated_conv": {"default": {"gated_conv": GatedConvConfig(conv_bias=True)} | BOTH},
}


def cases() -> list[Any]:
    """(mixer, settings of a model) of every mixer, as pytest parameters; options are slow."""
    return [
        pytest.param(
            *(name, changes),
            id=f"{name}-{label}".removesuffix("-default"),
            marks=[] if label == "default" else pytest.mark.slow,
        )
        for name in MIXERS
        for label, changes in CASES.get(name, {"default": {}}).items()
    ]


def config(mixer: str = "attention", channel: str = "mlp", **changes: Any) -> ModelConfig:
    settings = {"width": WIDTH, "depth": 2, "vocab": VOCAB, "layers": (f"{mixer}+{channel}",)}
    return ModelConfig(**(SMALL | settings | changes))


def reach(cfg: ModelConfig, mixer: str) -> int:
    """How many tokens a mixer sees, itself included."""
    part = cfg.part(mixer)
    if isinstance(part, AttentionConfig):
        return part.window or 1000
    return part.conv if isinstance(part, GatedConvConfig) else 1000


def slow(cfg: ModelConfig) -> ModelConfig:
    """With the reference implementation of every part that has several."""
    parts = {name: cfg.part(name) for name in (*MIXERS, *CHANNELS)}
    return dataclasses.replace(
        cfg,
        **{
            name: dataclasses.replace(part, implementation="reference")
            for name, part in parts.items()
            if part is not None and hasattr(part, "implementation")
        },
    )


@functools.cache
def model(cfg: ModelConfig, seed: int = 0) -> Model:
    """Every parameter at random, none where it would start: no scale is 1, no bias 0."""
    shapes = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0)))
    variables = jax.tree.leaves(shapes, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    noise, leaves = np.random.default_rng(seed), []
    for variable, shape in zip(variables, jax.tree.leaves(shapes), strict=True):
        value = noise.normal(size=shape.shape)
        role = variable.get_metadata()["role"]
        if role == "matrix":
            value *= shape.shape[-2] ** -0.5
        else:
            value = 0.1 * value + (role == "vector")
        leaves.append(jnp.asarray(value, shape.dtype))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def tokens(batch: int, length: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, (batch, length)), jnp.int32)


def packed(lengths: list[int], length: int, view: str = "causal") -> Sequence:
    """One row with documents of `lengths`, padded to `length`; under "prefix" each sees half."""
    positions, segments = np.zeros(length, np.int32), np.zeros(length, np.int32)
    prefix, at = np.zeros(length, bool), 0
    for number, size in enumerate(lengths, start=1):
        positions[at : at + size], segments[at : at + size] = np.arange(size), number
        prefix[at : at + (size + 1) // 2] = True
        at += size
    seen = jnp.asarray(prefix)[None] if view == "prefix" else None
    rows = jnp.asarray(positions)[None], jnp.asarray(segments)[None]
    return Sequence(*rows, seen, causal=view != "both")


def replaced(made: Model, **changes: Any) -> Model:
    """The same parameters under a changed config."""
    cfg = dataclasses.replace(made.config, **changes)
    return under(made, cfg)


def under(made: Model, cfg: ModelConfig) -> Model:
    """The same parameters under another config."""
    other = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0)))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(made))


# Attention, a recurrence and experts; the rest of the product is slow.
PAIRS = [
    (mixer, channel)
    if (mixer, channel) in (("attention", "mlp"), ("attention", "moe"), ("mamba2", "mlp"))
    else pytest.param(mixer, channel, marks=pytest.mark.slow)
    for mixer in MIXERS
    for channel in CHANNELS
]
