"""Trains multi-head latent attention with SwiGLU (MLA, arXiv:2405.04434) on the embedded corpus.

train.py --config=configs/latent_attention.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of multi-head latent attention of one size."""
    c = defaults()
    c.model.layers = ("latent_attention+mlp",)
    apply_size(c, size)
    return c
