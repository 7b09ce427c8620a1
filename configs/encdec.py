"""An encoder-decoder that writes what was taken out (T5, arXiv:1910.10683): relative positions, the
gated GELU of its version 1.1, a decoder as deep as its encoder, on the embedded corpus.

train.py --config=configs/encdec.py:tiny

A recurrent encoder reads its source in both directions:
--config.model.encoder.layers="('mamba2+mlp',)"
"""

from configs import resize
from training.settings import defaults


def get_config(size="tiny"):
    c = defaults()
    c.objective = "denoising"
    c.model.encoder.depth = 1
    c.model.attention.position = "relative"
    c.model.mlp.activation = "gelu_tanh"
    c.model.directions.weights = "shared"
    resize(c, size)
    return c
