"""Mamba-2 (arXiv:2405.21060, appendix D), and Codestral Mamba (mistral.ai/news/codestral-mamba).

train.py --config=configs/families/mamba2.py:tiny
"""

from arch import ModelConfig
from arch.embedding import HeadConfig
from arch.mamba2 import Mamba2Config
from arch.norms import NormConfig
from configs.families import pick, preset

# vocabulary (0: the tokenizer's), width, depth, groups, head tied
SIZES = {
    "tiny": (0, 128, 4, 1, True),
    "130m": (50288, 768, 24, 1, True),
    "2.7b": (50288, 2560, 64, 1, True),
    "codestral-7b": (32768, 4096, 64, 8, False),
}


def model(size: str) -> ModelConfig:
    vocab, width, depth, groups, tied = pick(SIZES, size)
    return ModelConfig(
        width=width,
        depth=depth,
        layers=("mamba2+none",),
        vocab=vocab,
        vocab_multiple=1 if vocab else 128,
        norm=NormConfig(eps=1e-5),
        head=HeadConfig(tied=tied),
        mamba2=Mamba2Config(groups=groups, norm_eps=1e-5),
    )


def get_config(size="tiny"):
    return preset(model(size))
