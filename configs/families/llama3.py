"""Defines LLaMA-3.1 and 3.2 (arXiv:2407.21783, table 3).

The scaling of RoPE is that of the published config files.

train.py --config=configs/families/llama3.py:tiny
"""

from arch import ModelConfig
from configs.families import llama2, preset, size_changes
from settings.changes import with_changes

FAMILY = llama2.FAMILY | {
    "attention.rope.theta": 5e5,
    "attention.rope.scaling": "llama3",
    "attention.rope.original_length": 8192,
}
COLUMNS = (*llama2.COLUMNS, "attention.rope.factor", "head.tied")
SIZES = {
    "tiny": (128, 4, 4, 2, 344, 8.0, True),
    "1b": (2048, 16, 32, 8, 8192, 32.0, True),
    "3b": (3072, 28, 24, 8, 8192, 32.0, True),
    "8b": (4096, 32, 32, 8, 14336, 8.0, False),
    "70b": (8192, 80, 64, 8, 28672, 8.0, False),
    "405b": (16384, 126, 128, 8, 53248, 8.0, False),
}


def model_config(size: str) -> ModelConfig:
    """Returns the LLaMA-3 model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=128256)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train LLaMA-3 at one size."""
    return preset(model_config(size))
