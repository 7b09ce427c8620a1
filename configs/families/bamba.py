"""Defines Bamba-9B (huggingface.co/blog/bamba): Mamba-2 with attention in layers 9, 18 and 27.

train.py --config=configs/families/bamba.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {"norm.eps": 1e-5, "head.tied": False, "mamba2.norm_eps": 1e-5}
COLUMNS = (
    *("width", "depth", "attention.heads", "attention.kv_heads", "attention.rope.rotary_dim"),
    "mlp.width",
)
SIZES = {"tiny": (128, 4, 4, 2, 16, 344), "9b": (4096, 32, 32, 8, 64, 14336)}
PERIODS = {"tiny": 2, "9b": 9}  # of the layers with attention, from the layer after the first one


def model_config(size: str) -> ModelConfig:
    """Returns the Bamba model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=128256)
    depth, period = SIZES[size][1], PERIODS[size]
    is_attention = [i > 0 and i % period == 0 for i in range(depth)]
    layers = tuple("attention+mlp" if attends else "mamba2+mlp" for attends in is_attention)
    return with_changes(ModelConfig(), FAMILY | changes | {"layers": layers})


def get_config(size="tiny"):
    """Returns the settings to train Bamba at one size."""
    return preset(model_config(size))
