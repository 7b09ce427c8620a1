"""Defines BERT (arXiv:1810.04805, section 3), uncased, with both heads of its pre-training.

train.py --config=configs/families/bert.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {
    "final_norm": False,
    "norm.kind": "layer",
    "norm.eps": 1e-12,
    "block.wiring": "post",
    "embed.token_types": 2,
    "embed.norm": True,
    "positions.learned": True,
    "head.bias": True,
    "head.mlm_transform": True,
    "pooler.kind": "first",
    "pooler.num_classes": 2,
    "attention.position_encoding": "none",
    "attention.bias_qkv": True,
    "attention.bias_out": True,
    "mlp.gated": False,
    "mlp.activation": "gelu",
    "mlp.bias": True,
}
# The last column is 0 where there are as many positions as in train.seq_len.
COLUMNS = ("width", "depth", "attention.heads", "positions.max_length")
SIZES = {"tiny": (128, 4, 4, 0), "base": (768, 12, 12, 512), "large": (1024, 24, 16, 512)}


def model_config(size: str) -> ModelConfig:
    """Returns the BERT model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=30522)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train BERT at one size."""
    return preset(model_config(size), "masked_lm")
