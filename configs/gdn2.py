"""Trains Gated DeltaNet-2 with SwiGLU (arXiv:2605.22791) on the embedded corpus.

train.py --config=configs/gdn2.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of Gated DeltaNet-2 of one size."""
    c = defaults()
    c.model.layers = ("gdn2+mlp",)
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
