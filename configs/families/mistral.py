"""Defines Mistral-7B (arXiv:2310.06825, table 1): LLaMA with a window of 4096 tokens.

train.py --config=configs/families/mistral.py:tiny
"""

from arch import ModelConfig
from configs.families import llama2, lookup_size, preset
from settings.changes import with_changes

# size of llama2, and what differs from it
SIZES = {
    "tiny": ("tiny", {"attention.kv_heads": 2, "attention.window": 64, "mlp.width": 344}),
    "7b": ("7b", {"attention.kv_heads": 8, "attention.window": 4096, "mlp.width": 14336}),
}


def model_config(size: str) -> ModelConfig:
    """Returns the Mistral model of one size."""
    name, changes = lookup_size(SIZES, size)
    return with_changes(llama2.model_config(name), changes)


def get_config(size="tiny"):
    """Returns the settings to train Mistral at one size."""
    return preset(model_config(size))
