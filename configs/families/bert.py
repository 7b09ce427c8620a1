"""BERT (arXiv:1810.04805, section 3) with both heads of its pre-training, uncased.

train.py --config=configs/families/bert.py:tiny
"""

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.block import BlockConfig
from arch.embedding import EmbedConfig, HeadConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from arch.pooler import PoolerConfig
from arch.positions import PositionsConfig
from configs.families import pick, preset

# width, depth, heads, positions (0: train.length)
SIZES = {"tiny": (128, 4, 4, 0), "base": (768, 12, 12, 512), "large": (1024, 24, 16, 512)}


def model(size: str) -> ModelConfig:
    width, depth, heads, length = pick(SIZES, size)
    return ModelConfig(
        width=width,
        depth=depth,
        vocab=30522 if length else 0,
        vocab_multiple=1 if length else 128,
        final_norm=False,
        norm=NormConfig("layer", eps=1e-12),
        block=BlockConfig(wiring="post"),
        embed=EmbedConfig(types=2, norm=True),
        positions=PositionsConfig(learned=True, length=length),
        head=HeadConfig(bias=True, transform=True),
        pooler=PoolerConfig("first", classes=2),
        attention=AttentionConfig(heads=heads, position="none", bias_qkv=True, bias_out=True),
        mlp=MlpConfig(gated=False, activation="gelu", bias=True),
    )


def get_config(size="tiny"):
    return preset(model(size), "masked_lm")
