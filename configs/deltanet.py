"""Trains Gated DeltaNet with SwiGLU (arXiv:2412.06464) on the embedded corpus.

train.py --config=configs/deltanet.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of Gated DeltaNet of one size."""
    c = defaults()
    c.model.layers = ("gated_deltanet+mlp",)
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
