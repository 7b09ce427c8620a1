"""Defines gpt-oss (openai.com/index/gpt-oss-model-card, section 2; arXiv:2508.10925).

train.py --config=configs/families/recent/gpt_oss.py:tiny
"""

from arch import ModelConfig
from configs.families import lookup_size, preset
from settings.changes import with_changes

ROPE = {"theta": 150000.0, "scaling": "yarn", "factor": 32.0, "original_length": 4096}
ATTENTION: dict[str, object] = {"sinks": True, "bias_qkv": True, "bias_out": True}
ATTENTION |= {f"rope.{key}": value for key, value in ROPE.items()} | {"rope.truncate": False}
FAMILY = {
    "layers": ("local_attention+moe", "attention+moe"),
    "norm.eps": 1e-5,
    "head.tied": False,
    "moe.top_k": 4,
    "moe.activation": "clipped_swish",
    "moe.bias": True,
    "moe.router_bias": True,
    "local_attention.window": 128,
}
# width, depth, heads, key/value heads, width of a head and of an expert, experts
SIZES = {
    "tiny": (128, 4, 4, 2, 32, 128, 8),
    "20b": (2880, 24, 64, 8, 64, 2880, 32),
    "120b": (2880, 36, 64, 8, 64, 2880, 128),
}


def model_config(size: str) -> ModelConfig:
    """Returns the gpt-oss model of one size."""
    D, depth, heads, kv_heads, head_dim, width, experts = lookup_size(SIZES, size)
    changes: dict[str, object] = {"width": D, "depth": depth}
    changes |= {"moe.width": width, "moe.num_experts": experts}
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    for name in ("attention", "local_attention"):
        changes |= {f"{name}.{key}": value for key, value in (ATTENTION | sizes).items()}
    if size != "tiny":
        changes |= {"vocab_size": 201088, "vocab_multiple": 1}
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train gpt-oss at one size."""
    return preset(model_config(size))
