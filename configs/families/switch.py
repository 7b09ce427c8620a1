"""Switch Transformers (arXiv:2101.03961): T5 with experts in every second layer, one a token.

train.py --config=configs/families/switch.py:tiny
"""

import dataclasses

from arch import ModelConfig
from arch.config import EncoderConfig
from arch.moe import MoeConfig
from configs.families import pick, preset, t5

# base, experts
SIZES = {"tiny": ("tiny", 4), "base-8": ("base", 8), "base-128": ("base", 128)}
LAYERS = ("attention+mlp", "attention+moe")


def model(size: str) -> ModelConfig:
    name, experts = pick(SIZES, size)
    base = t5.model(name)
    moe = MoeConfig(
        experts=experts,
        top_k=1,
        width=base.mlp.width,
        gated=False,
        activation="relu",
        normalize=False,
        slots=64,  # expert_capacity of the released models
    )
    encoder = EncoderConfig(depth=base.encoder.depth, layers=LAYERS)
    return dataclasses.replace(base, layers=LAYERS, encoder=encoder, moe=moe)


def get_config(size="tiny"):
    return preset(model(size), "denoising")
