"""RoBERTa (arXiv:1907.11692, section 3): BERT without next sentences, positions from row 2 on.

train.py --config=configs/families/roberta.py:tiny
"""

import dataclasses

from arch import ModelConfig
from arch.embedding import EmbedConfig
from arch.norms import NormConfig
from arch.pooler import PoolerConfig
from arch.positions import PositionsConfig
from configs.families import bert, preset


def model(size: str) -> ModelConfig:
    base = bert.model(size)
    return dataclasses.replace(
        base,
        vocab=50265 if base.vocab else 0,
        norm=NormConfig("layer", eps=1e-5),
        embed=EmbedConfig(types=1, norm=True),
        positions=PositionsConfig(learned=True, length=base.positions.length, offset=2),
        pooler=PoolerConfig(),
    )


def get_config(size="tiny"):
    return preset(model(size), "masked_lm")
