"""Defines GPT-2 (Radford et al. 2019, table 2), and GPT-3 as far as it is published.

The source of GPT-3 is arXiv:2005.14165. Its alternating sparse attention is excluded, because the
pattern is not published.

train.py --config=configs/families/gpt2.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {
    "norm.kind": "layer",
    "norm.eps": 1e-5,
    "positions.learned": True,
    "attention.position_encoding": "none",
    "attention.bias_qkv": True,
    "attention.bias_out": True,
    "mlp.gated": False,
    "mlp.activation": "gelu_tanh",
    "mlp.bias": True,
}
# The last column is 0 where there are as many positions as in train.seq_len.
COLUMNS = ("width", "depth", "attention.heads", "positions.max_length")
SIZES = {
    "tiny": (128, 4, 4, 0),
    "124m": (768, 12, 12, 1024),
    "355m": (1024, 24, 16, 1024),
    "774m": (1280, 36, 20, 1024),
    "1.5b": (1600, 48, 25, 1024),
    "175b": (12288, 96, 96, 2048),
}


def model_config(size: str) -> ModelConfig:
    """Returns the GPT-2 model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=50257)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train GPT-2 at one size."""
    return preset(model_config(size))
