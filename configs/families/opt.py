"""OPT (arXiv:2205.01068, table 1); 350m has norms after its sublayers and a narrow table.

train.py --config=configs/families/opt.py:tiny
"""

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.block import BlockConfig
from arch.embedding import EmbedConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from arch.positions import PositionsConfig
from configs.families import pick, preset

# width, depth, heads
SIZES = {
    "tiny": (128, 4, 4),
    "125m": (768, 12, 12),
    "350m": (1024, 24, 16),
    "1.3b": (2048, 24, 32),
    "6.7b": (4096, 32, 32),
    "175b": (12288, 96, 96),
}


def model(size: str) -> ModelConfig:
    width, depth, heads = pick(SIZES, size)
    vocab, after = 0 if size == "tiny" else 50272, size == "350m"
    return ModelConfig(
        width=width,
        depth=depth,
        vocab=vocab,
        vocab_multiple=1 if vocab else 128,
        final_norm=not after,
        norm=NormConfig("layer", eps=1e-5),
        block=BlockConfig(wiring="post" if after else "pre"),
        embed=EmbedConfig(width=512 if after else 0),
        positions=PositionsConfig(learned=True, length=2048 if vocab else 0, offset=2),
        attention=AttentionConfig(heads=heads, position="none", bias_qkv=True, bias_out=True),
        mlp=MlpConfig(gated=False, activation="relu", bias=True),
    )


def get_config(size="tiny"):
    return preset(model(size))
