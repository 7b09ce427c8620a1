"""Compares two model configs by the function that their models compute.

The canonical form leaves out the names of variants, the tiling of a pattern, dropout,
initialization, loss terms and implementations. It states implied widths explicitly.
"""

import dataclasses
from typing import Any

from arch import ModelConfig
from arch.block import BlockConfig
from arch.channels.mlp import MlpConfig
from arch.channels.moe import MoeConfig
from arch.layers.rope import RopeConfig
from arch.mixers.attention import AttentionConfig
from arch.mixers.gated_deltanet import GatedDeltaNetConfig
from arch.mixers.kda import KdaConfig
from arch.mixers.latent_attention import LatentAttentionConfig
from arch.mixers.mamba1 import Mamba1Config
from arch.mixers.mamba2 import Mamba2Config
from arch.pattern import LayerLayout

# These fields change training or speed only.
TRAINING_ONLY = {
    *("dropout", "implementation", "chunk_size", "dt", "router_jitter"),
    *("balance_loss", "balance_over", "z_loss", "capacity_factor", "min_capacity"),
}
# The scalings of rotary positions that use a field.
ROPE_SCALING_FIELDS = {
    "factor": ("linear", "dynamic", "llama3", "yarn", "longrope"),
    "original_length": ("dynamic", "llama3", "yarn", "longrope"),
    "low_freq_factor": ("llama3",),
    "high_freq_factor": ("llama3",),
    "beta_fast": ("yarn",),
    "beta_slow": ("yarn",),
    "truncate": ("yarn",),
    "short_factor": ("longrope",),
    "long_factor": ("longrope",),
}
CANONICAL_PART = {"local_attention": "attention"}  # both names stand for one class


def canonical_config(config: ModelConfig) -> dict[str, object]:
    """Returns the settings that decide the function of a model, as plain values by name."""
    config = config.as_standard()
    settings: dict[str, object] = {
        "width": config.width,
        "vocab_size": config.vocab_size,
        "final_norm": config.final_norm,
        **_flatten("embed", config.embed),
        **_flatten("norm", config.norm),
        **_flatten("head", config.head),
        **_flatten("pooler", config.pooler),
    }
    settings |= _canonical_layers("layer", config, config.layer_layout())
    positions = _flatten("positions", config.positions)
    if not config.positions.learned:
        settings["positions.learned"] = False
    else:
        settings |= {
            k: v for k, v in positions.items() if k.split(".")[1] in _LEARNED_POSITION_FIELDS
        }
    if config.num_relative_heads():
        settings |= {
            k: v for k, v in positions.items() if k.split(".")[1] not in _LEARNED_POSITION_FIELDS
        }
    if config.encoder.depth:
        settings |= _canonical_layers("encoder.layer", config, config.encoder_layout())
        cross_attention = _canonical_part(config.cross_attention, config.width)
        settings |= _flatten("cross_attention", cross_attention)
    if config.vision.depth:
        outer = _flatten("vision", config.vision)
        inner = ("parts", "layers", "first_layers", "width", "depth")  # of the stack itself
        settings |= {k: v for k, v in outer.items() if k.split(".")[1] not in inner}
        tower = canonical_config(config.vision_stack())
        settings |= {f"vision.{k}": v for k, v in tower.items() if k not in _TEXT_SETTINGS}
    if not config.head.mlm_transform:
        settings.pop("head.mlm_transform_activation")
        settings.pop("head.mlm_transform_bias")
    return settings


def differences(a: ModelConfig, b: ModelConfig) -> list[str]:
    """Returns a text for each setting in which the functions of two configs differ."""
    settings_a, settings_b = canonical_config(a), canonical_config(b)
    return [
        f"{name} {settings_a.get(name)!r}, not {settings_b.get(name)!r}"
        for name in {**settings_a, **settings_b}
        if settings_a.get(name) != settings_b.get(name)
    ]


# Settings of a model that its vision stack has no use for.
_TEXT_SETTINGS = ("vocab_size", "positions.learned", "positions.max_length", "positions.offset")
_LEARNED_POSITION_FIELDS = ("learned", "max_length", "offset")


def _canonical_layers(name: str, config: ModelConfig, layout: LayerLayout) -> dict[str, object]:
    settings: dict[str, object] = {f"{name}s": len(layout.layer_specs())}
    for i, spec in enumerate(layout.layer_specs()):
        block = config.block_config(spec)
        norms = block.norms if block.wiring == "parallel" else BlockConfig().norms
        settings |= _flatten(f"{name}{i}.block", dataclasses.replace(block, norms=norms))
        if "&" in spec.mixer:
            settings |= _flatten(f"{name}{i}.side_by_side", config.side_by_side)
        for part_name, variant in spec.parts():
            part = config.part_config(part_name, variant)
            key = f"{name}{i}.{CANONICAL_PART.get(part_name, part_name)}"
            settings[key] = True
            if part is not None:
                settings |= _flatten(key, _canonical_part(part, config.width))
    return settings


def _flatten(name: str, part: Any) -> dict[str, object]:
    settings: dict[str, object] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name in TRAINING_ONLY:
            continue
        if dataclasses.is_dataclass(value):
            settings |= _flatten(f"{name}.{field.name}", value)
        else:
            settings[f"{name}.{field.name}"] = value
    return settings


def _canonical_part(part: Any, D: int) -> Any:
    """Returns a config with implied values filled in, and unused fields at their defaults."""
    if isinstance(part, AttentionConfig):
        H, G, K = part.head_shape(D)
        rope, default = part.rope, AttentionConfig()
        if part.position_encoding != "rope":
            rope = default.rope
        else:
            rope = _active_rope_fields(dataclasses.replace(rope, rotary_dim=rope.rotary_dim or K))
        eps = part.qk_norm_eps if part.qk_norm != "none" else default.qk_norm_eps
        part = dataclasses.replace(part, scale=part.score_scale(K), base_head_dim=0)
        return dataclasses.replace(part, kv_heads=G, head_dim=K, rope=rope, qk_norm_eps=eps)
    if isinstance(part, (MlpConfig, MoeConfig)):
        part = dataclasses.replace(part, width=part.inner_dim(D))
    if isinstance(part, MoeConfig) and part.shared_experts:
        width = part.shared_experts_config(D).inner_dim(D)
        return dataclasses.replace(part, shared_experts=1, shared_width=width)
    if isinstance(part, GatedDeltaNetConfig):
        H, K, Kv = part.head_shape(D)
        return dataclasses.replace(part, key_heads=part.key_heads or H, key_dim=K, value_dim=Kv)
    if isinstance(part, KdaConfig):
        _, K, Kv = part.head_shape(D)
        return dataclasses.replace(part, key_dim=K, value_dim=Kv, gate_rank=part.gate_rank or Kv)
    if isinstance(part, LatentAttentionConfig):
        r, dn, dr, dv = part.sizes(D)
        is_rotated = part.position_encoding == "rope"
        return dataclasses.replace(
            part,
            kv_rank=r,
            nope_dim=dn,
            rope_dim=dr,
            value_dim=dv,
            rope=_active_rope_fields(part.rope) if is_rotated else LatentAttentionConfig().rope,
            scale=part.scale or (dn + dr) ** -0.5,
        )
    if isinstance(part, Mamba2Config):
        C = part.sizes(D)[0]
        eps = part.norm_eps if part.norm != "none" else Mamba2Config().norm_eps
        scales = part.in_scales or (1.0,) * 5
        return dataclasses.replace(part, expand=1, inner_width=C, norm_eps=eps, in_scales=scales)
    if isinstance(part, Mamba1Config):
        eps = part.norm_eps if part.dt_bc_norm else Mamba1Config().norm_eps
        return dataclasses.replace(part, dt_rank=part.sizes(D)[2], norm_eps=eps)
    return part


def _active_rope_fields(rope: RopeConfig) -> RopeConfig:
    """Resets the fields that the scaling does not use."""
    defaults = dataclasses.asdict(RopeConfig())
    unused = {
        name: defaults[name]
        for name, scalings in ROPE_SCALING_FIELDS.items()
        if rope.scaling not in scalings
    }
    return dataclasses.replace(rope, **unused)
