"""Trains HGRN-2 with SwiGLU (arXiv:2404.07904) on the embedded corpus.

train.py --config=configs/mixers/hgrn2.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of HGRN-2 of one size."""
    c = defaults()
    c.model.layers = ("hgrn2+mlp",)
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
