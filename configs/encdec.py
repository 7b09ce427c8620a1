"""Trains an encoder-decoder that restores removed spans (T5, arXiv:1910.10683).

It has relative positions and the gated GELU of version 1.1, and its decoder is as deep as its
encoder.

train.py --config=configs/encdec.py:tiny

A recurrent encoder reads its source in both directions:
--config.model.encoder.layers="('mamba2+mlp',)"
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of the encoder-decoder of one size."""
    c = defaults()
    c.objective = "denoising"
    c.model.encoder.depth = 1
    c.model.attention.position_encoding = "relative"
    c.model.mlp.activation = "gelu_tanh"
    c.model.bidirectional.weights = "shared"
    apply_size(c, size)
    return c
