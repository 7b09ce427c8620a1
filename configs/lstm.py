"""Trains an LSTM with SwiGLU between its layers, a baseline that predates Transformers.

train.py --config=configs/lstm.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of an LSTM of one size."""
    c = defaults()
    c.model.layers = ("lstm+mlp",)
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
