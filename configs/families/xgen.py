"""Defines XGen-7B (arXiv:2309.03450).

It is LLaMA-7B trained on rows of 8192 tokens, with a vocabulary of 51200.

train.py --config=configs/families/xgen.py:tiny
"""

from arch import ModelConfig
from configs.families import llama2, lookup_size, preset
from settings.changes import with_changes

# size of llama2, and what differs from it
SIZES = {
    "tiny": ("tiny", {"norm.eps": 1e-6}),
    "7b": ("7b", {"norm.eps": 1e-6, "vocab_size": 51200}),
}


def model_config(size: str) -> ModelConfig:
    """Returns the XGen model of one size."""
    name, changes = lookup_size(SIZES, size)
    return with_changes(llama2.model_config(name), changes)


def get_config(size="tiny"):
    """Returns the settings to train XGen at one size."""
    return preset(model_config(size))
