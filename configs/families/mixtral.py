"""Mixtral (arXiv:2401.04088, table 1): Mistral with eight experts, two a token, and no window.

train.py --config=configs/families/mixtral.py:tiny
"""

import dataclasses

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.moe import MoeConfig
from arch.rope import RopeConfig
from configs.families import mistral, pick, preset

# base, experts
SIZES = {"tiny": ("tiny", 4), "8x7b": ("7b", 8)}


def model(size: str) -> ModelConfig:
    name, experts = pick(SIZES, size)
    base = mistral.model(name)
    heads, kv_heads = base.attention.heads, base.attention.kv_heads
    return dataclasses.replace(
        base,
        layers=("attention+moe",),
        attention=AttentionConfig(heads=heads, kv_heads=kv_heads, rope=RopeConfig(theta=1e6)),
        moe=MoeConfig(experts=experts, top_k=2, width=base.mlp.width),
    )


def get_config(size="tiny"):
    return preset(model(size))
