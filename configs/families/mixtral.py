"""Defines Mixtral (arXiv:2401.04088, table 1).

It is Mistral with eight experts, two for each token, and without a window.

train.py --config=configs/families/mixtral.py:tiny
"""

from arch import ModelConfig
from configs.families import lookup_size, mistral, preset
from settings.changes import with_changes

FAMILY = {
    "layers": ("attention+moe",),
    "attention.window": 0,
    "attention.rope.theta": 1e6,
    "moe.top_k": 2,
}
# size of mistral, experts
SIZES = {"tiny": ("tiny", 4), "8x7b": ("7b", 8)}


def model_config(size: str) -> ModelConfig:
    """Returns the Mixtral model of one size."""
    name, experts = lookup_size(SIZES, size)
    base = mistral.model_config(name)
    return with_changes(base, FAMILY | {"moe.num_experts": experts, "moe.width": base.mlp.width})


def get_config(size="tiny"):
    """Returns the settings to train Mixtral at one size."""
    return preset(model_config(size))
