"""Defines Qwen3 without experts (arXiv:2505.09388, table 1).

The widths of channels and heads are those of the published config files.

train.py --config=configs/families/recent/qwen3.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {
    "attention.rope.theta": 1e6,
    "attention.qk_norm": "head",
    "attention.kv_heads": 8,
    "attention.head_dim": 128,
}
COLUMNS = ("width", "depth", "attention.heads", "mlp.width", "head.tied")
SIZES = {
    "tiny": (128, 4, 8, 384, True),
    "0.6b": (1024, 28, 16, 3072, True),
    "1.7b": (2048, 28, 16, 6144, True),
    "4b": (2560, 36, 32, 9728, True),
    "8b": (4096, 36, 32, 12288, False),
    "14b": (5120, 40, 40, 17408, False),
    "32b": (5120, 64, 64, 25600, False),
}
TINY = {"attention.head_dim": 16, "attention.kv_heads": 4}


def model_config(size: str) -> ModelConfig:
    """Returns the Qwen3 model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=151936)
    return with_changes(ModelConfig(), FAMILY | changes | (TINY if size == "tiny" else {}))


def get_config(size="tiny"):
    """Returns the settings to train Qwen3 at one size."""
    return preset(model_config(size))
