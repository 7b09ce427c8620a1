"""Defines RoBERTa (arXiv:1907.11692, section 3).

It is BERT without next-sentence prediction, and its positions start at row 2 of their table.

train.py --config=configs/families/roberta.py:tiny
"""

from arch import ModelConfig
from configs.families import bert, preset, size_changes
from settings.changes import with_changes

FAMILY = bert.FAMILY | {
    "norm.eps": 1e-5,
    "embed.token_types": 1,
    "positions.offset": 2,
    "pooler.kind": "none",
    "pooler.num_classes": 0,
}


def model_config(size: str) -> ModelConfig:
    """Returns the RoBERTa model of one size."""
    changes = size_changes(bert.COLUMNS, bert.SIZES, size, vocab_size=50265)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train RoBERTa at one size."""
    return preset(model_config(size), "masked_lm")
