"""LLaMA-2 (arXiv:2307.09288, appendix A.2.1; sizes of arXiv:2302.13971, table 2).

train.py --config=configs/families/llama2.py:tiny
"""

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.embedding import HeadConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from configs.families import pick, preset

# vocabulary (0: the tokenizer's), width, depth, heads, key heads, width of the MLP
SIZES = {
    "tiny": (0, 128, 4, 4, 4, 344),
    "7b": (32000, 4096, 32, 32, 32, 11008),
    "13b": (32000, 5120, 40, 40, 40, 13824),
    "70b": (32000, 8192, 80, 64, 8, 28672),
}


def model(size: str) -> ModelConfig:
    vocab, width, depth, heads, kv_heads, wide = pick(SIZES, size)
    return ModelConfig(
        width=width,
        depth=depth,
        vocab=vocab,
        vocab_multiple=1 if vocab else 128,
        norm=NormConfig(eps=1e-5),
        head=HeadConfig(tied=False),
        attention=AttentionConfig(heads=heads, kv_heads=kv_heads),
        mlp=MlpConfig(width=wide),
    )


def get_config(size="tiny"):
    return preset(model(size))
