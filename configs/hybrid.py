"""Trains a hybrid of three Mamba-2 blocks to one attention block, all with SwiGLU.

Jamba (arXiv:2403.19887) also combines both kinds of mixers.

train.py --config=configs/hybrid.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of the hybrid of Mamba-2 and attention of one size."""
    c = defaults()
    c.model.layers = ("mamba2+mlp",) * 3 + ("attention+mlp",)
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
