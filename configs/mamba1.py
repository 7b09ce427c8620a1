"""Trains Mamba-1 blocks without channels (arXiv:2312.00752) on the embedded corpus.

train.py --config=configs/mamba1.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of Mamba-1 of one size."""
    c = defaults()
    c.model.layers = ("mamba1+none",)
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
