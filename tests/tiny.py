"""Tiny models and rows, small enough to compile in a second."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from arch import CHANNELS, MIXERS, Model, ModelConfig, Sequence
from arch.attention import AttentionConfig
from arch.positions import RopeConfig

WIDTH, VOCAB = 16, 40

# What a part is also tested as: options that change its mathematics.
CASES: dict[str, dict[str, Any]] = {
    "attention": {
        "default": AttentionConfig(),
        "grouped": AttentionConfig(kv_heads=2, bias_qkv=True, bias_out=True, qk_norm="head"),
        "multi-query window": AttentionConfig(kv_heads=1, window=3, softcap=2.0, qk_norm="full"),
        "alibi": AttentionConfig(position="alibi", heads=2, head_width=6, scale=0.3, clip=1.5),
        "partial rope": AttentionConfig(rope=RopeConfig(width=2, style="pairs", theta=100.0)),
    },
}


def cases() -> list[Any]:
    """(mixer, options) of every mixer, as pytest parameters."""
    import pytest

    return [
        pytest.param(name, cfg, id=f"{name}-{label}".replace("-default", "").replace(" ", "-"))
        for name in MIXERS
        for label, cfg in CASES.get(name, {"default": getattr(ModelConfig(), name)}).items()
    ]


def config(mixer: str = "attention", part: Any = None, channel: str = "mlp", **changes: Any):
    settings = {"width": WIDTH, "depth": 2, "vocab": VOCAB, "layers": (f"{mixer}+{channel}",)}
    if part is not None:
        settings[mixer] = part
    return ModelConfig(**(settings | changes))


def model(cfg: ModelConfig, seed: int = 0) -> Model:
    """With every parameter moved off its start, so that no scale is 1 and no bias 0."""
    made = _made(cfg, seed)
    leaves, tree = jax.tree.flatten(made)
    noise = np.random.default_rng(seed)
    leaves = [x + 0.1 * jnp.asarray(noise.normal(size=x.shape), x.dtype) for x in leaves]
    return jax.tree.unflatten(tree, leaves)


@functools.cache
def _made(cfg: ModelConfig, seed: int) -> Model:
    return jax.jit(lambda: Model(cfg, key=jax.random.key(seed)))()


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
    other = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0)))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(made))


PAIRS = [(mixer, channel) for mixer in MIXERS for channel in CHANNELS]
