"""BLOOM (arXiv:2211.05100, table 3).

train.py --config=configs/families/bloom.py:tiny
"""

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.embedding import EmbedConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from configs.families import pick, preset

# width, depth, heads
SIZES = {
    "tiny": (128, 4, 4),
    "560m": (1024, 24, 16),
    "7b1": (4096, 30, 32),
    "176b": (14336, 70, 112),
}


def model(size: str) -> ModelConfig:
    width, depth, heads = pick(SIZES, size)
    vocab = 0 if size == "tiny" else 250880
    return ModelConfig(
        width=width,
        depth=depth,
        vocab=vocab,
        vocab_multiple=1 if vocab else 128,
        norm=NormConfig("layer", eps=1e-5),
        embed=EmbedConfig(norm=True),
        attention=AttentionConfig(heads=heads, position="alibi", bias_qkv=True, bias_out=True),
        mlp=MlpConfig(gated=False, activation="gelu_bloom", bias=True),
    )


def get_config(size="tiny"):
    return preset(model(size))
