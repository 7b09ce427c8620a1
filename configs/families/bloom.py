"""Defines BLOOM (arXiv:2211.05100, table 3).

train.py --config=configs/families/bloom.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {
    "norm.kind": "layer",
    "norm.eps": 1e-5,
    "embed.norm": True,
    "attention.position_encoding": "alibi",
    "attention.bias_qkv": True,
    "attention.bias_out": True,
    "mlp.gated": False,
    "mlp.activation": "gelu_bloom",
    "mlp.bias": True,
}
COLUMNS = ("width", "depth", "attention.heads")
SIZES = {
    "tiny": (128, 4, 4),
    "560m": (1024, 24, 16),
    "7b1": (4096, 30, 32),
    "176b": (14336, 70, 112),
}


def model_config(size: str) -> ModelConfig:
    """Returns the BLOOM model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=250880)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train BLOOM at one size."""
    return preset(model_config(size))
