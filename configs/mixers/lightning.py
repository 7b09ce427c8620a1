"""Trains lightning attention with SwiGLU (arXiv:2401.04658) on the embedded corpus.

train.py --config=configs/mixers/lightning.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of lightning attention of one size."""
    c = defaults()
    c.model.layers = ("lightning+mlp",)
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
