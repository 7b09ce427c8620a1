"""Defines Mamba (arXiv:2312.00752, table 12).

train.py --config=configs/families/mamba.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {"layers": ("mamba1+none",), "norm.eps": 1e-5}
COLUMNS = ("width", "depth")
SIZES = {
    "tiny": (128, 4),
    "130m": (768, 24),
    "370m": (1024, 48),
    "1.4b": (2048, 48),
    "2.8b": (2560, 64),
}


def model_config(size: str) -> ModelConfig:
    """Returns the Mamba model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=50280)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train Mamba at one size."""
    return preset(model_config(size))
