"""LLaMA-3.1 and 3.2 (arXiv:2407.21783, table 3; rope scaling as in the published config files).

train.py --config=configs/families/llama3.py:tiny
"""

import dataclasses

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.embedding import HeadConfig
from arch.mlp import MlpConfig
from arch.rope import RopeConfig
from configs.families import llama2, pick, preset

# width, depth, heads, key heads, width of the MLP, factor of the rope, head tied
SIZES = {
    "tiny": (128, 4, 4, 2, 344, 8.0, True),
    "1b": (2048, 16, 32, 8, 8192, 32.0, True),
    "3b": (3072, 28, 24, 8, 8192, 32.0, True),
    "8b": (4096, 32, 32, 8, 14336, 8.0, False),
    "70b": (8192, 80, 64, 8, 28672, 8.0, False),
    "405b": (16384, 126, 128, 8, 53248, 8.0, False),
}


def model(size: str) -> ModelConfig:
    width, depth, heads, kv_heads, wide, factor, tied = pick(SIZES, size)
    rope = RopeConfig(theta=5e5, scaling="llama3", factor=factor, original=8192)
    vocab = 0 if size == "tiny" else 128256
    return dataclasses.replace(
        llama2.model("tiny"),
        width=width,
        depth=depth,
        vocab=vocab,
        vocab_multiple=1 if vocab else 128,
        head=HeadConfig(tied=tied),
        attention=AttentionConfig(heads=heads, kv_heads=kv_heads, rope=rope),
        mlp=MlpConfig(width=wide),
    )


def get_config(size="tiny"):
    return preset(model(size))
