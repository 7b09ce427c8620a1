"""Falcon (arXiv:2311.16867, table 16), and Falcon2-11B (arXiv:2407.14885).

train.py --config=configs/families/falcon.py:tiny
"""

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.block import BlockConfig
from arch.embedding import HeadConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from arch.rope import RopeConfig
from configs.families import pick, preset

# width, depth, heads, key heads, norms of a block
SIZES = {
    "tiny": (128, 4, 4, 1, 1),
    "7b": (4544, 32, 71, 1, 1),
    "40b": (8192, 60, 128, 8, 2),
    "180b": (14848, 80, 232, 8, 2),
    "11b": (4096, 60, 32, 8, 1),
}
LATER = ("11b",)  # a head of its own, another base of the rope


def model(size: str) -> ModelConfig:
    width, depth, heads, kv_heads, norms = pick(SIZES, size)
    vocab = 0 if size == "tiny" else 65024
    return ModelConfig(
        width=width,
        depth=depth,
        vocab=vocab,
        vocab_multiple=1 if vocab else 128,
        norm=NormConfig("layer", eps=1e-5),
        block=BlockConfig(wiring="parallel", norms=norms),
        head=HeadConfig(tied=size not in LATER),
        attention=AttentionConfig(
            heads=heads,
            kv_heads=kv_heads,
            rope=RopeConfig(theta=500042.0 if size in LATER else 10000.0),
        ),
        mlp=MlpConfig(gated=False, activation="gelu"),
    )


def get_config(size="tiny"):
    return preset(model(size))
