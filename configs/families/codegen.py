"""CodeGen (arXiv:2203.13474, table 10) and GPT-J-6B (Wang and Komatsuzaki 2021): one graph.

train.py --config=configs/families/codegen.py:tiny
"""

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.block import BlockConfig
from arch.embedding import HeadConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from arch.rope import RopeConfig
from configs.families import pick, preset

# vocabulary (0: the tokenizer's), width, depth, heads, turned features
SIZES = {
    "tiny": (0, 128, 4, 4, 16),
    "350m": (51200, 1024, 20, 16, 32),
    "2b": (51200, 2560, 32, 32, 64),
    "16b": (51200, 6144, 34, 24, 64),
    "gptj-6b": (50400, 4096, 28, 16, 64),
}


def model(size: str) -> ModelConfig:
    vocab, width, depth, heads, turned = pick(SIZES, size)
    return ModelConfig(
        width=width,
        depth=depth,
        vocab=vocab,
        vocab_multiple=1 if vocab else 128,
        norm=NormConfig("layer", eps=1e-5),
        block=BlockConfig(wiring="parallel", norms=1),
        head=HeadConfig(tied=False, bias=True),
        attention=AttentionConfig(heads=heads, rope=RopeConfig(width=turned, style="pairs")),
        mlp=MlpConfig(gated=False, activation="gelu_tanh", bias=True),
    )


def get_config(size="tiny"):
    return preset(model(size))
