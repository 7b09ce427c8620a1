"""Defines Qwen3-Next-80B-A3B (qwen.ai/blog, "Qwen3-Next", September 2025), by its config file.

It is without the layer that predicts a second token.

train.py --config=configs/families/recent/qwen3_next.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {
    "layers": (*("gated_deltanet+moe",) * 3, "attention+moe"),
    "norm.unit_offset": True,
    "head.tied": False,
    "attention.output_gate": "channel",
    "attention.qk_norm": "head",
    "attention.qk_norm_unit_offset": True,
    "attention.rope.theta": 1e7,
    "moe.shared_experts": 1,
    "moe.shared_gate": True,
}
COLUMNS = (
    *("width", "depth", "attention.heads", "attention.kv_heads", "attention.head_dim"),
    *("attention.rope.rotary_dim", "gated_deltanet.heads", "gated_deltanet.key_heads"),
    *("gated_deltanet.key_dim", "gated_deltanet.value_dim", "mlp.width"),
    *("moe.num_experts", "moe.top_k", "moe.width", "moe.shared_width"),
)
SIZES = {
    "tiny": (128, 4, 4, 2, 32, 8, 4, 2, 32, 32, 344, 8, 2, 64, 64),
    "80b-a3b": (2048, 48, 16, 2, 256, 64, 32, 16, 128, 128, 5120, 512, 10, 512, 512),
}


def model_config(size: str) -> ModelConfig:
    """Returns the Qwen3-Next model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=151936)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train Qwen3-Next at one size."""
    return preset(model_config(size))
