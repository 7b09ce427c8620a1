"""Defines Falcon-H1-0.5B (arXiv:2507.22448), by its config file.

The nine factors of the published files belong to their weights; here they are 1.

train.py --config=configs/families/recent/falcon_h1.py:tiny
"""

from arch import ModelConfig
from configs.families import preset, size_changes
from settings.changes import with_changes

FAMILY = {
    "layers": ("attention&mamba2+mlp",),
    "norm.eps": 1e-5,
    "attention.rope.theta": 1e11,
    "mamba2.norm": "none",
}
COLUMNS = (
    *("width", "depth", "attention.heads", "attention.kv_heads", "attention.head_dim"),
    *("mamba2.inner_width", "mamba2.head_dim", "mamba2.state_size", "mlp.width", "head.tied"),
)
SIZES = {
    "tiny": (128, 4, 4, 2, 32, 192, 32, 32, 344, True),
    "0.5b": (1024, 36, 8, 2, 64, 1536, 64, 128, 2048, False),
}


def model_config(size: str) -> ModelConfig:
    """Returns the Falcon-H1 model of one size."""
    changes = size_changes(COLUMNS, SIZES, size, vocab_size=32784)
    return with_changes(ModelConfig(), FAMILY | changes)


def get_config(size="tiny"):
    """Returns the settings to train Falcon-H1 at one size."""
    return preset(model_config(size))
