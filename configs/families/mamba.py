"""Mamba (arXiv:2312.00752, table 12).

train.py --config=configs/families/mamba.py:tiny
"""

from arch import ModelConfig
from arch.norms import NormConfig
from configs.families import pick, preset

# width, depth
SIZES = {
    "tiny": (128, 4),
    "130m": (768, 24),
    "370m": (1024, 48),
    "1.4b": (2048, 48),
    "2.8b": (2560, 64),
}


def model(size: str) -> ModelConfig:
    width, depth = pick(SIZES, size)
    vocab = 0 if size == "tiny" else 50280
    return ModelConfig(
        width=width,
        depth=depth,
        layers=("mamba1+none",),
        vocab=vocab,
        vocab_multiple=1 if vocab else 128,
        norm=NormConfig(eps=1e-5),
    )


def get_config(size="tiny"):
    return preset(model(size))
