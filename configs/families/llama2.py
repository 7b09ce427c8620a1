"""Defines LLaMA-2 (arXiv:2307.09288, appendix A.2.1; sizes of arXiv:2302.13971, table 2).

train.py --config=configs/families/llama2.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {"norm.eps": 1e-5, "head.tied": False}
COLUMNS = ("width", "depth", "attention.heads", "attention.kv_heads", "mlp.width")
SIZES = {
    "tiny": (128, 4, 4, 4, 344),
    "7b": (4096, 32, 32, 32, 11008),
    "13b": (5120, 40, 40, 40, 13824),
    "70b": (8192, 80, 64, 8, 28672),
}


def model_config(size: str) -> ModelConfig:
    """Returns the LLaMA-2 model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=32000)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train LLaMA-2 at one size."""
    return preset(model_config(size))
