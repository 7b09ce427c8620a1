"""Defines Falcon (arXiv:2311.16867, table 16), and Falcon2-11B (arXiv:2407.14885).

train.py --config=configs/families/falcon.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {
    "norm.kind": "layer",
    "norm.eps": 1e-5,
    "block.wiring": "parallel",
    "mlp.gated": False,
    "mlp.activation": "gelu",
}
FALCON2 = {"head.tied": False, "attention.rope.theta": 500042.0}
COLUMNS = ("width", "depth", "attention.heads", "attention.kv_heads", "block.norms")
SIZES = {
    "tiny": (128, 4, 4, 1, 1),
    "7b": (4544, 32, 71, 1, 1),
    "40b": (8192, 60, 128, 8, 2),
    "180b": (14848, 80, 232, 8, 2),
    "11b": (4096, 60, 32, 8, 1),
}
FALCON2_SIZES = ("11b",)


def model_config(size: str) -> ModelConfig:
    """Returns the Falcon model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=65024)
    if size in FALCON2_SIZES:
        changes |= FALCON2
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train Falcon at one size."""
    return preset(model_config(size))
