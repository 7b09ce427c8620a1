"""Defines Mamba-2 (arXiv:2405.21060, appendix D), and Codestral Mamba.

The source of Codestral Mamba is mistral.ai/news/codestral-mamba.

train.py --config=configs/families/mamba2.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {"layers": ("mamba2+none",), "norm.eps": 1e-5, "mamba2.norm_eps": 1e-5}
COLUMNS = ("width", "depth", "mamba2.n_groups", "head.tied")
SIZES = {
    "tiny": (128, 4, 1, True),
    "130m": (768, 24, 1, True),
    "2.7b": (2560, 64, 1, True),
    "codestral-7b": (4096, 64, 8, False),
}


def model_config(size: str) -> ModelConfig:
    """Returns the Mamba-2 model of one size."""
    vocab_size = 32768 if size == "codestral-7b" else 50288
    changes = size_changes(COLUMNS, SIZES, size, vocab_size)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train Mamba-2 at one size."""
    return preset(model_config(size))
