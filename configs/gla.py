"""Trains gated linear attention with SwiGLU (arXiv:2312.06635) on the embedded corpus.

train.py --config=configs/gla.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of gated linear attention of one size."""
    c = defaults()
    c.model.layers = ("gla+mlp",)
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
