"""Trains Gated DeltaProduct with SwiGLU (arXiv:2502.10297) on the embedded corpus.

train.py --config=configs/delta_product.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of Gated DeltaProduct of one size."""
    c = defaults()
    c.model.layers = ("delta_product+mlp",)
    c.model.bidirectional.weights = "shared"  # for bidirectional objectives
    apply_size(c, size)
    return c
