"""Defines CodeGen (arXiv:2203.13474, table 10) and GPT-J-6B (Wang and Komatsuzaki 2021).

Both compute the same function.

train.py --config=configs/families/codegen.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {
    "norm.kind": "layer",
    "norm.eps": 1e-5,
    "block.wiring": "parallel",
    "block.norms": 1,
    "head.tied": False,
    "head.bias": True,
    "attention.rope.style": "interleaved",
    "mlp.gated": False,
    "mlp.activation": "gelu_tanh",
    "mlp.bias": True,
}
COLUMNS = ("width", "depth", "attention.heads", "attention.rope.rotary_dim")
SIZES = {
    "tiny": (128, 4, 4, 16),
    "350m": (1024, 20, 16, 32),
    "2b": (2560, 32, 32, 64),
    "16b": (6144, 34, 24, 64),
    "gptj-6b": (4096, 28, 16, 64),
}


def model_config(size: str) -> ModelConfig:
    """Returns the CodeGen model of one size."""
    vocab_size = 50400 if size == "gptj-6b" else 51200
    changes = size_changes(COLUMNS, SIZES, size, vocab_size)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train CodeGen at one size."""
    return preset(model_config(size))
