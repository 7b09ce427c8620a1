"""Defines DeepSeek-V2 and V2-Lite (arXiv:2405.04434, section 3.1.2 and appendix B).

Scores grow by the square of YaRN's factor 0.1 * 0.707 ln(40) + 1, as in the published code.

train.py --config=configs/families/recent/deepseek_v2.py:tiny
"""

import math

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

HEAD = {"nope_dim": 128, "rope_dim": 64, "value_dim": 128, "kv_rank": 512}
ROPE = {"scaling": "yarn", "factor": 40.0, "original_length": 4096, "attention_factor": 1.0}
GROWTH = 0.1 * 0.707 * math.log(40) + 1
FAMILY = {
    "first_layers": ("latent_attention+mlp",),
    "layers": ("latent_attention+moe",),
    "head.tied": False,
    "moe.normalize_weights": False,
    "moe.group_score_top_k": 1,
    "moe.shared_experts": 2,
    "latent_attention.scale": GROWTH**2 * (128 + 64) ** -0.5,
    **{f"latent_attention.{key}": value for key, value in HEAD.items()},
    **{f"latent_attention.rope.{key}": value for key, value in ROPE.items()},
}
COLUMNS = (
    *("width", "depth", "latent_attention.heads", "latent_attention.query_rank", "mlp.width"),
    *("moe.num_experts", "moe.top_k", "moe.width", "moe.n_groups", "moe.top_groups"),
    "moe.route_scale",
)
SIZES = {
    "tiny": (128, 4, 4, 0, 344, 8, 2, 64, 1, 0, 1.0),
    "lite": (2048, 27, 16, 0, 10944, 64, 6, 1408, 1, 0, 1.0),
    "236b": (5120, 60, 128, 1536, 12288, 160, 6, 1536, 8, 3, 16.0),
}
TINY = {"nope_dim": 32, "rope_dim": 16, "value_dim": 32, "kv_rank": 64, "scale": 0.0}


def model_config(size: str) -> ModelConfig:
    """Returns the DeepSeek-V2 model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=102400)
    if size == "tiny":
        changes |= {f"latent_attention.{key}": value for key, value in TINY.items()}
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train DeepSeek-V2 at one size."""
    return preset(model_config(size))
