"""Vicuna 1.5 (lmsys.org/blog/2023-03-30-vicuna): LLaMA-2 trained on chats, for rows of 16k too.

train.py --config=configs/families/vicuna.py:tiny
"""

import dataclasses

from arch import ModelConfig
from arch.rope import RopeConfig
from configs.families import llama2, pick, preset

SIZES = {"tiny": "tiny", "7b": "7b", "13b": "13b", "7b-16k": "7b"}


def model(size: str) -> ModelConfig:
    base = llama2.model(pick(SIZES, size))
    if not size.endswith("-16k"):
        return base
    rope = RopeConfig(scaling="linear", factor=4.0)
    return dataclasses.replace(base, attention=dataclasses.replace(base.attention, rope=rope))


def get_config(size="tiny"):
    return preset(model(size))
