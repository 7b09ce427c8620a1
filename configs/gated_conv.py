"""Trains gated short convolutions with SwiGLU, a baseline that cannot recall distant tokens.

train.py --config=configs/gated_conv.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of gated short convolutions of one size."""
    c = defaults()
    c.model.layers = ("gated_conv+mlp",)
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
