"""GPT-2 (Radford et al. 2019, table 2), and GPT-3 as far as it is published (arXiv:2005.14165).

Left out on purpose: GPT-3's alternating sparse attention, whose pattern is not published.

train.py --config=configs/families/gpt2.py:tiny
"""

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from arch.positions import PositionsConfig
from configs.families import pick, preset

# width, depth, heads, positions (0: train.length)
SIZES = {
    "tiny": (128, 4, 4, 0),
    "124m": (768, 12, 12, 1024),
    "355m": (1024, 24, 16, 1024),
    "774m": (1280, 36, 20, 1024),
    "1.5b": (1600, 48, 25, 1024),
    "175b": (12288, 96, 96, 2048),
}


def model(size: str) -> ModelConfig:
    width, depth, heads, length = pick(SIZES, size)
    return ModelConfig(
        width=width,
        depth=depth,
        vocab=50257 if length else 0,
        vocab_multiple=1 if length else 128,
        norm=NormConfig("layer", eps=1e-5),
        positions=PositionsConfig(learned=True, length=length),
        attention=AttentionConfig(heads=heads, position="none", bias_qkv=True, bias_out=True),
        mlp=MlpConfig(gated=False, activation="gelu_tanh", bias=True),
    )


def get_config(size="tiny"):
    return preset(model(size))
