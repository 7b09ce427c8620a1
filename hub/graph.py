"""What of a config decides the function that a model computes: two configs with one graph are one.

Names of variants, ways to tile a pattern, dropout, initialisation, loss terms and implementations
play no part; widths that are implied are spelt out.
"""

import dataclasses
from typing import Any

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.mamba1 import Mamba1Config
from arch.mlp import MlpConfig
from arch.moe import MoeConfig
from arch.pattern import Plan
from arch.rope import RopeConfig

# Fields that change training or speed only.
ASIDE = {"dropout", "implementation", "chunk", "step", "jitter", "balance", "z", "capacity"}
ASIDE |= {"min_capacity"}
# Fields of rotary positions that only some ways to stretch them use, and which.
STRETCHES = {
    "factor": ("linear", "dynamic", "llama3", "yarn", "longrope"),
    "original": ("dynamic", "llama3", "yarn", "longrope"),
    "low": ("llama3",),
    "high": ("llama3",),
    "beta_fast": ("yarn",),
    "beta_slow": ("yarn",),
    "truncate": ("yarn",),
    "short": ("longrope",),
    "long": ("longrope",),
}
KINDS = {"local_attention": "attention"}  # entries of one class


def graph(config: ModelConfig) -> dict[str, Any]:
    """Settings by name, each as plain values."""
    found: dict[str, Any] = {
        "width": config.width,
        "vocab": config.vocab,
        "final_norm": config.final_norm,
        **_flat("embed", config.embed),
        **_flat("norm", config.norm),
        **_flat("block", config.block),
        **_flat("head", config.head),
        **_flat("pooler", config.pooler),
    }
    found |= _layers("layer", config, config.plan())
    positions = _flat("positions", config.positions)
    if not config.positions.learned:
        found["positions.learned"] = False
    else:
        found |= {k: v for k, v in positions.items() if k.split(".")[1] in _TABLE}
    if config.relative_heads():
        found |= {k: v for k, v in positions.items() if k.split(".")[1] not in _TABLE}
    if config.encoder.depth:
        found |= _layers("encoder.layer", config, config.encoder_plan())
        found |= _flat("cross", _spelt(config.cross, config.width))
    if config.block.wiring != "parallel":
        found.pop("block.norms")
    if not config.head.transform:
        found.pop("head.transform_activation")
        found.pop("head.transform_bias")
    return found


def differences(a: ModelConfig, b: ModelConfig) -> list[str]:
    """What two configs compute differently, in words; [] if nothing."""
    one, other = graph(a), graph(b)
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return [f"{name} {one.get(name)!r}, not {other.get(name)!r}" for name in names]


_TABLE = ("learned", "length", "offset")


def _layers(name: str, config: ModelConfig, plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {f"{name}s": len(plan.entries())}
    for i, e in enumerate(plan.entries()):
        for kind, part in ((e.mixer, config.part(*e[:2])), (e.channel, config.part(*e[2:]))):
            kind = KINDS.get(kind, kind)
            found[f"{name}{i}.{kind}"] = True
            if part is not None:
                found |= _flat(f"{name}{i}.{kind}", _spelt(part, config.width))
    return found


def _flat(name: str, part: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            found |= _flat(f"{name}.{field.name}", value) if field.name not in ASIDE else {}
        elif field.name not in ASIDE:
            found[f"{name}.{field.name}"] = value
    return found


def _spelt(part: Any, D: int) -> Any:
    """A part's config with what it implies, and defaults where a field has no meaning."""
    if isinstance(part, AttentionConfig):
        H, G, K = part.shape(D)
        rope, blank = part.rope, AttentionConfig()
        if part.position != "rope":
            rope = blank.rope
        else:
            rope = _stretched(dataclasses.replace(rope, width=rope.width or K))
        eps = part.qk_norm_eps if part.qk_norm != "none" else blank.qk_norm_eps
        whole = dataclasses.replace(part, kv_heads=G, head_width=K, rope=rope, qk_norm_eps=eps)
        return dataclasses.replace(whole, scale=part.scale or K**-0.5)
    if isinstance(part, (MlpConfig, MoeConfig)):
        part = dataclasses.replace(part, width=part.size(D))
    if isinstance(part, MoeConfig) and part.shared:
        wide = part.common(D).size(D)
        return dataclasses.replace(part, shared=1, shared_width=wide)
    if isinstance(part, Mamba1Config):
        eps = part.norm_eps if part.norms else Mamba1Config().norm_eps
        return dataclasses.replace(part, rank=part.sizes(D)[2], norm_eps=eps)
    return part


def _stretched(rope: RopeConfig) -> RopeConfig:
    """Without what its scaling does not use."""
    plain = dataclasses.asdict(RopeConfig())
    idle = {name: plain[name] for name, kinds in STRETCHES.items() if rope.scaling not in kinds}
    return dataclasses.replace(rope, **idle)
