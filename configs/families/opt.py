"""Defines OPT (arXiv:2205.01068, table 1).

The 350m size has norms after its sublayers and a narrow embedding.

train.py --config=configs/families/opt.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {
    "norm.kind": "layer",
    "norm.eps": 1e-5,
    "positions.learned": True,
    "positions.offset": 2,
    "attention.position_encoding": "none",
    "attention.bias_qkv": True,
    "attention.bias_out": True,
    "mlp.gated": False,
    "mlp.activation": "relu",
    "mlp.bias": True,
}
# The last column is 0 where there are as many positions as in train.seq_len.
COLUMNS = ("width", "depth", "attention.heads", "positions.max_length")
SIZES = {
    "tiny": (128, 4, 4, 0),
    "125m": (768, 12, 12, 2048),
    "350m": (1024, 24, 16, 2048),
    "1.3b": (2048, 24, 32, 2048),
    "6.7b": (4096, 32, 32, 2048),
    "175b": (12288, 96, 96, 2048),
}
POST_NORM = {"final_norm": False, "block.wiring": "post", "embed.factorized_width": 512}


def model_config(size: str) -> ModelConfig:
    """Returns the OPT model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=50272)
    if size == "350m":
        changes |= POST_NORM
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train OPT at one size."""
    return preset(model_config(size))
