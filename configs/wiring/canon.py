"""Trains a Transformer with Canon layers at all four points (arXiv:2512.17351).

train.py --config=configs/wiring/canon.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of a Transformer with Canon layers of one size."""
    c = defaults()
    c.model.layers = ("attention+mlp",)
    c.model.block.canon = "ABCD"
    apply_size(c, size)
    return c
