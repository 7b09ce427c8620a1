"""Tiny models and rows that compile in a second."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from arch import CHANNELS, MIXERS, Model, ModelConfig, SequenceInfo
from arch.block import BlockConfig
from arch.channels.moe import MoeConfig
from arch.layers.positions import PositionsConfig
from arch.layers.rope import RopeConfig
from arch.mixers.attention import AttentionConfig
from arch.mixers.combined.bidirectional import BidirectionalConfig
from arch.mixers.combined.side_by_side import SideBySideConfig
from arch.mixers.delta_product import DeltaProductConfig
from arch.mixers.gated_conv import GatedConvConfig
from arch.mixers.gated_deltanet import GatedDeltaNetConfig
from arch.mixers.gdn2 import Gdn2Config
from arch.mixers.gla import GlaConfig
from arch.mixers.hgrn2 import Hgrn2Config
from arch.mixers.kda import KdaConfig
from arch.mixers.latent_attention import LatentAttentionConfig
from arch.mixers.lightning import LightningConfig
from arch.mixers.mamba1 import Mamba1Config
from arch.mixers.mamba2 import Mamba2Config

WIDTH, VOCAB = 16, 40


def attention(**settings: Any) -> dict[str, Any]:
    """Returns model settings with these settings of attention."""
    return {"attention": AttentionConfig(**settings)}


# Settings of the parts whose default sizes exceed the width of a tiny model.
SMALL: dict[str, Any] = {
    "latent_attention": LatentAttentionConfig(kv_rank=6, nope_dim=4, rope_dim=2),
    "mamba1": Mamba1Config(state_size=4),
    "mamba2": Mamba2Config(state_size=6, head_dim=8, chunk_size=4),
    "gated_deltanet": GatedDeltaNetConfig(heads=2, chunk_size=4),
    "kda": KdaConfig(heads=2, chunk_size=4),
    "gdn2": Gdn2Config(heads=2, chunk_size=4),
    "delta_product": DeltaProductConfig(heads=2, chunk_size=4),
    "gla": GlaConfig(heads=2, chunk_size=4, gate_rank=3),
    "hgrn2": Hgrn2Config(heads=2, chunk_size=4),
    "lightning": LightningConfig(heads=2, chunk_size=4),
    "moe": MoeConfig(num_experts=4, width=8),
}
BIDIRECTIONAL = {"bidirectional": BidirectionalConfig(weights="shared")}
SIDE_BY_SIDE = ("attention&mamba2",)  # Mixers in one layer that are tested as mixers are.

# Model settings with which each mixer is tested, by name; they change its mathematics.
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "attention": {
        "default": {},
        "grouped": attention(kv_heads=2, bias_qkv=True, bias_out=True, qk_norm="head"),
        "multi-query window": attention(kv_heads=1, window=3, softcap=2.0, qk_norm="full"),
        "alibi": attention(position_encoding="alibi", heads=2, head_dim=6, scale=0.3, qkv_clip=1.5),
        "partial rope": attention(rope=RopeConfig(rotary_dim=2, style="interleaved", theta=100.0)),
        "gates": attention(kv_heads=2, output_gate="channel", sinks=True, forget_gate=True),
        "gate of a head in a forgetful window": attention(
            output_gate="head", forget_gate=True, window=3, position_encoding="none"
        ),
        "value residual": attention(kv_heads=2, value_residual=True),
        "canon": attention(kv_heads=2, bias_qkv=True, qk_norm="head")
        | {"block": BlockConfig(canon="ABCD", canon_width=3)},
        "selected blocks": attention(kv_heads=1, block_size=2, top_blocks=2),
        "relative": attention(position_encoding="relative")
        | {"positions": PositionsConfig(num_buckets=8, max_distance=8)},
    },
    "latent_attention": {
        "default": {},
        "query latent": {
            "latent_attention": LatentAttentionConfig(
                heads=2,
                kv_rank=5,
                query_rank=7,
                nope_dim=4,
                rope_dim=3,
                value_dim=6,
                position_encoding="none",
                scale=0.4,
                bias=True,
            )
        },
    },
    "local_attention": {"default": {"local_attention": AttentionConfig(window=3)}},
    "attention&mamba2": {
        "default": {},
        "normed": BIDIRECTIONAL
        | {"side_by_side": SideBySideConfig("norm_mean", out_scales=(0.7, 1.3))},
        "canon and value residual": attention(value_residual=True)
        | {
            "block": BlockConfig(wiring="parallel", norms=1, canon="BD"),
            "side_by_side": SideBySideConfig(in_scales=(0.7, 1.3)),
        },
    },
    "mamba1": {
        "default": {},
        "bidirectional": BIDIRECTIONAL
        | {"mamba1": Mamba1Config(state_size=4, dt_rank=3, bias=True, dt_bc_norm=True)},
    },
    "mamba2": {
        "default": {},
        "bidirectional": {
            "bidirectional": BidirectionalConfig(weights="separate", merge="gate"),
            "mamba2": Mamba2Config(
                state_size=6,
                head_dim=8,
                n_groups=2,
                chunk_size=4,
                bias=True,
                dt_limit_min=0.01,
                dt_limit_max=9.0,
            ),
        },
    },
    "gated_deltanet": {
        "default": {},
        "allow_negative_eigenvalues": {
            "gated_deltanet": GatedDeltaNetConfig(
                heads=1, allow_negative_eigenvalues=True, chunk_size=4
            )
        }
        | BIDIRECTIONAL,
        "shared keys": {
            "gated_deltanet": GatedDeltaNetConfig(
                heads=4, key_heads=2, key_dim=3, value_dim=2, chunk_size=4
            )
        },
        "DeltaNet": {
            "gated_deltanet": GatedDeltaNetConfig(
                heads=2, decay=False, output_gate=False, chunk_size=4
            )
        },
    },
    "hgrn2": {
        "default": {},
        "bidirectional": {
            "hgrn2": Hgrn2Config(heads=2, key_dim=3, value_dim=5, chunk_size=4),
            "bidirectional": BidirectionalConfig(weights="separate", merge="gate"),
        },
    },
    "lightning": {
        "default": {},
        "bidirectional": BIDIRECTIONAL
        | {"lightning": LightningConfig(heads=2, head_dim=3, slopes="transnormer", chunk_size=4)},
    },
    "lstm": {"default": BIDIRECTIONAL},
    "gated_conv": {"default": {"gated_conv": GatedConvConfig(conv_bias=True)} | BIDIRECTIONAL},
}


def cases() -> list[Any]:
    """Returns (mixer, model settings) as pytest parameters; all but the defaults are slow tests."""
    return [
        pytest.param(
            *(name, changes),
            id=f"{name}-{label}".removesuffix("-default"),
            marks=[] if label == "default" else pytest.mark.slow,
        )
        for name in (*MIXERS, *SIDE_BY_SIDE)
        for label, changes in CASES.get(name, {"default": {}}).items()
    ]


def config(mixer: str = "attention", channel: str = "mlp", **changes: Any) -> ModelConfig:
    """Returns the config of a tiny model with two layers of these parts."""
    settings = {"width": WIDTH, "depth": 2, "vocab_size": VOCAB, "layers": (f"{mixer}+{channel}",)}
    return ModelConfig(**(SMALL | settings | changes))


def reach(cfg: ModelConfig, mixer: str) -> int:
    """Returns how many tokens a token sees through one mixer, itself included; 1000: all."""
    part = cfg.part_config(mixer)
    if isinstance(part, AttentionConfig):
        return part.window or 1000
    return part.conv_width if isinstance(part, GatedConvConfig) else 1000


def slow(cfg: ModelConfig) -> ModelConfig:
    """Returns the config with the reference implementation of every part that has several."""
    parts = {name: cfg.part_config(name) for name in (*MIXERS, *CHANNELS)}
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
    """Returns a model with random parameters, so that no scale is 1 and no bias is 0."""
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
    """Returns random token ids [batch, length]."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, (batch, length)), jnp.int32)


def packed(lengths: list[int], length: int, view: str = "causal") -> SequenceInfo:
    """Returns one row of documents of `lengths`, padded to `length`; half of each is a prefix."""
    positions, segments = np.zeros(length, np.int32), np.zeros(length, np.int32)
    prefix, start = np.zeros(length, bool), 0
    for number, size in enumerate(lengths, start=1):
        positions[start : start + size], segments[start : start + size] = np.arange(size), number
        prefix[start : start + (size + 1) // 2] = True
        start += size
    is_prefix = jnp.asarray(prefix)[None] if view == "prefix" else None
    rows = jnp.asarray(positions)[None], jnp.asarray(segments)[None]
    return SequenceInfo(*rows, is_prefix, causal=view != "bidirectional")


def replaced(model: Model, **changes: Any) -> Model:
    """Returns the model with the same parameters and a changed config."""
    return under(model, dataclasses.replace(model.config, **changes))


def under(model: Model, cfg: ModelConfig) -> Model:
    """Returns the model with the same parameters and another config."""
    shapes = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0)))
    return jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(model))


# Attention with an MLP and with experts are quick tests; the other pairs are slow ones.
PAIRS = [
    (mixer, channel)
    if (mixer, channel) in (("attention", "mlp"), ("attention", "moe"))
    else pytest.param(mixer, channel, marks=pytest.mark.slow)
    for mixer in MIXERS
    for channel in CHANNELS
]
