"""XGen-7B (arXiv:2309.03450): LLaMA-7B trained on rows of 8192, with a vocabulary of 51200.

train.py --config=configs/families/xgen.py:tiny
"""

import dataclasses

from arch import ModelConfig
from arch.norms import NormConfig
from configs.families import llama2, pick, preset

SIZES = {"tiny": "tiny", "7b": "7b"}


def model(size: str) -> ModelConfig:
    base = llama2.model(pick(SIZES, size))
    vocab = 51200 if base.vocab else 0
    return dataclasses.replace(base, vocab=vocab, norm=NormConfig(eps=1e-6))


def get_config(size="tiny"):
    return preset(model(size))
