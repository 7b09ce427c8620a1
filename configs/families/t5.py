"""Defines T5 1.0 (arXiv:1910.10683, section 3.7) and 1.1 (arXiv:2002.05202).

The sizes of 1.1 are those of the models that the authors released.

train.py --config=configs/families/t5.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {
    "attention.scale": 1.0,
    "attention.position_encoding": "relative",
    "cross_attention.scale": 1.0,
}
V1_0 = {"mlp.gated": False, "mlp.activation": "relu"}  # its head is scaled by 1 / sqrt(width)
V1_1 = {"head.tied": False, "head.scale": 1.0, "mlp.activation": "gelu_tanh"}
COLUMNS = ("width", "depth", "attention.heads", "attention.head_dim", "mlp.width")
SIZES = {
    "tiny": (128, 2, 4, 32, 512),
    "small": (512, 6, 8, 64, 2048),
    "base": (768, 12, 12, 64, 3072),
    "large": (1024, 24, 16, 64, 4096),
    "3b": (1024, 24, 32, 128, 16384),
    "11b": (1024, 24, 128, 128, 65536),
    "1.1-small": (512, 8, 6, 64, 1024),
    "1.1-base": (768, 12, 12, 64, 2048),
    "1.1-large": (1024, 24, 16, 64, 2816),
    "1.1-xl": (2048, 24, 32, 64, 5120),
    "1.1-xxl": (4096, 24, 64, 64, 10240),
}


def model_config(size: str) -> ModelConfig:
    """Returns the T5 model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=32128)
    for name in ("heads", "head_dim"):
        changes[f"cross_attention.{name}"] = changes[f"attention.{name}"]
    changes["encoder.depth"] = changes["depth"]
    version = V1_1 if size.startswith("1.1") else V1_0 | {"head.scale": SIZES[size][0] ** -0.5}
    return with_changes(ModelConfig(), FAMILY | version | changes)


def get_config(size="tiny"):
    """Returns the settings to train T5 at one size."""
    return preset(model_config(size), "denoising")
