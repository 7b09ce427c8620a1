"""Mistral-7B (arXiv:2310.06825, table 1): LLaMA with a window of 4096 tokens.

train.py --config=configs/families/mistral.py:tiny
"""

import dataclasses

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.mlp import MlpConfig
from configs.families import llama2, pick, preset

# base, key heads, window, width of the MLP
SIZES = {"tiny": ("tiny", 2, 64, 344), "7b": ("7b", 8, 4096, 14336)}


def model(size: str) -> ModelConfig:
    name, kv_heads, window, wide = pick(SIZES, size)
    base = llama2.model(name)
    heads = base.attention.heads
    attention = AttentionConfig(heads=heads, kv_heads=kv_heads, window=window)
    return dataclasses.replace(base, attention=attention, mlp=MlpConfig(width=wide))


def get_config(size="tiny"):
    return preset(model(size))
