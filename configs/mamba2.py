"""Trains Mamba-2 blocks without channels (arXiv:2405.21060) on the embedded corpus.

train.py --config=configs/mamba2.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of Mamba-2 of one size."""
    c = defaults()
    c.model.layers = ("mamba2+none",)
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
