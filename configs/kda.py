"""Trains Kimi Delta Attention with SwiGLU (arXiv:2510.26692) on the embedded corpus.

train.py --config=configs/kda.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of Kimi Delta Attention of one size."""
    c = defaults()
    c.model.layers = ("kda+mlp",)
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
