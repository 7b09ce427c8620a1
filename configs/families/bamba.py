"""Bamba-9B (huggingface.co/blog/bamba): Mamba-2 with attention in layers 9, 18 and 27.

train.py --config=configs/families/bamba.py:tiny
"""

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.embedding import HeadConfig
from arch.mamba2 import Mamba2Config
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from arch.rope import RopeConfig
from configs.families import pick, preset

# width, depth, attention in every so many layers, heads, key heads, width of the MLP
SIZES = {"tiny": (128, 4, 2, 4, 2, 344), "9b": (4096, 32, 9, 32, 8, 14336)}


def model(size: str) -> ModelConfig:
    width, depth, every, heads, kv_heads, wide = pick(SIZES, size)
    vocab = 0 if size == "tiny" else 128256
    attends = [i > 0 and i % every == 0 for i in range(depth)]
    return ModelConfig(
        width=width,
        depth=depth,
        layers=tuple("attention+mlp" if one else "mamba2+mlp" for one in attends),
        vocab=vocab,
        vocab_multiple=1 if vocab else 128,
        norm=NormConfig(eps=1e-5),
        head=HeadConfig(tied=False),
        attention=AttentionConfig(
            heads=heads, kv_heads=kv_heads, rope=RopeConfig(width=width // heads // 2)
        ),
        mamba2=Mamba2Config(norm_eps=1e-5),
        mlp=MlpConfig(width=wide),
    )


def get_config(size="tiny"):
    return preset(model(size))
