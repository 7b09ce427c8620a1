"""Defines OLMo 2 (arXiv:2501.00656, table 3; the 1B and 32B models: allenai.org/olmo).

train.py --config=configs/families/recent/olmo2.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {
    "attention.rope.theta": 5e5,
    "attention.qk_norm": "full",
    "block.wiring": "branch_norm",
    "head.tied": False,
}
COLUMNS = ("width", "depth", "attention.heads", "attention.kv_heads", "mlp.width")
SIZES = {
    "tiny": (128, 4, 4, 4, 344),
    "1b": (2048, 16, 16, 16, 8192),
    "7b": (4096, 32, 32, 32, 11008),
    "13b": (5120, 40, 40, 40, 13824),
    "32b": (5120, 64, 40, 8, 27648),
}


def model_config(size: str) -> ModelConfig:
    """Returns the OLMo 2 model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=100352)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train OLMo 2 at one size."""
    return preset(model_config(size))
