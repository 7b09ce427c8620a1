"""Defines Kimi-Linear-48B-A3B (arXiv:2510.26692), by its config file.

Layers 4, 8, ..., 24 and 27 have latent attention without positions, the others KDA.

train.py --config=configs/families/recent/kimi_linear.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {
    "norm.eps": 1e-5,
    "head.tied": False,
    "kda.gate_bias": False,
    "kda.norm_eps": 1e-5,
    "latent_attention.position_encoding": "none",
    "moe.router_activation": "sigmoid",
    "moe.bias_update_rate": 1e-3,
    "moe.shared_experts": 1,
    "moe.route_scale": 2.446,
}
COLUMNS = (
    *("width", "depth", "kda.heads", "kda.key_dim", "latent_attention.heads"),
    *("latent_attention.kv_rank", "latent_attention.nope_dim", "latent_attention.rope_dim"),
    *("mlp.width", "moe.num_experts", "moe.top_k", "moe.width"),
)
SIZES = {
    "tiny": (128, 4, 4, 32, 4, 64, 32, 16, 344, 8, 2, 64),
    "48b-a3b": (2304, 27, 32, 128, 32, 512, 128, 64, 9216, 256, 8, 1024),
}


def model_config(size: str) -> ModelConfig:
    """Returns the Kimi Linear model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=163840)
    depth = SIZES[size][1]
    mixers = ["kda" if i % 4 and i < depth else "latent_attention" for i in range(1, depth + 1)]
    layers = (f"{mixers[0]}+mlp", *(f"{mixer}+moe" for mixer in mixers[1:]))
    return with_changes(ModelConfig(), FAMILY | changes | {"layers": layers})


def get_config(size="tiny"):
    """Returns the settings to train Kimi Linear at one size."""
    return preset(model_config(size))
