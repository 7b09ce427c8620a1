"""Defines Switch Transformers (arXiv:2101.03961).

They are T5 with experts in every second layer, one for each token.

train.py --config=configs/families/switch.py:tiny
"""

from arch import ModelConfig
from configs.families import lookup_size, preset, t5
from settings.changes import with_changes

LAYERS = ("attention+mlp", "attention+moe")
FAMILY = {
    "layers": LAYERS,
    "encoder.layers": LAYERS,
    "moe.top_k": 1,
    "moe.gated": False,
    "moe.activation": "relu",
    "moe.normalize_weights": False,
    "moe.expert_capacity": 64,  # as in the released models
}
# size of t5, experts
SIZES = {"tiny": ("tiny", 4), "base-8": ("base", 8), "base-128": ("base", 128)}


def model_config(size: str) -> ModelConfig:
    """Returns the Switch Transformers model of one size."""
    name, experts = lookup_size(SIZES, size)
    base = t5.model_config(name)
    changes = {"moe.num_experts": experts, "moe.width": base.mlp.width}
    return with_changes(base, FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train Switch Transformers at one size."""
    return preset(model_config(size), "denoising")
