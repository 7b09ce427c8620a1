"""Defines the text models of Gemma 3 with one key/value head (arXiv:2503.19786).

Five of six layers have a window, and rotary positions of a smaller base.

train.py --config=configs/families/recent/gemma3.py:tiny
"""

from arch import ModelConfig
from configs.families import lookup_size, preset
from settings.changes import with_changes

FAMILY = {
    "layers": (*("local_attention+mlp",) * 5, "attention+mlp"),
    "norm.unit_offset": True,
    "block.wiring": "sandwich",
    "mlp.activation": "gelu_tanh",
    "head.tied": True,
}
ATTENTION = {
    "heads": 4,
    "kv_heads": 1,
    "qk_norm": "head",
    "qk_norm_unit_offset": True,
}
THETAS = {"attention": 1e6, "local_attention": 1e4}
# width, depth, width of a head, width of the MLP, window
SIZES = {
    "tiny": (128, 6, 32, 344, 64),
    "270m": (640, 18, 256, 2048, 512),
    "1b": (1152, 26, 256, 6912, 512),
}


def model_config(size: str) -> ModelConfig:
    """Returns the Gemma 3 model of one size."""
    D, depth, head_dim, channel, window = lookup_size(SIZES, size)
    changes: dict[str, object] = {"width": D, "depth": depth, "mlp.width": channel}
    changes |= {"embed.scale": D**0.5, "local_attention.window": window}
    for name, theta in THETAS.items():
        changes |= {f"{name}.{key}": value for key, value in ATTENTION.items()}
        changes |= {f"{name}.head_dim": head_dim, f"{name}.rope.theta": theta}
    if size != "tiny":
        changes |= {"vocab_size": 262144, "vocab_multiple": 1}
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train Gemma 3 at one size."""
    return preset(model_config(size))
