"""Defines Phi-3 mini and medium with rows of 4096 tokens (arXiv:2404.14219).

train.py --config=configs/families/recent/phi3.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {"norm.eps": 1e-5, "attention.window": 2047, "head.tied": False}
COLUMNS = ("width", "depth", "attention.heads", "attention.kv_heads", "mlp.width")
SIZES = {
    "tiny": (128, 4, 4, 4, 344),
    "mini": (3072, 32, 32, 32, 8192),
    "medium": (5120, 40, 40, 10, 17920),
}


def model_config(size: str) -> ModelConfig:
    """Returns the Phi-3 model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=32064)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train Phi-3 at one size."""
    return preset(model_config(size))
