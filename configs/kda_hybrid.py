"""Trains a hybrid of three Kimi Delta Attention blocks to one attention block, all with SwiGLU.

Kimi Linear (arXiv:2510.26692) has this ratio, and no positions in its attention, as here.

train.py --config=configs/kda_hybrid.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of the hybrid of KDA and attention of one size."""
    c = defaults()
    c.model.first_layers = ("kda+mlp",)  # 5 layers, not 4, have as many parameters as others
    c.model.layers = ("kda+mlp",) * 3 + ("attention+mlp",)
    c.model.attention.position_encoding = "none"
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
