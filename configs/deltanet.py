"""Gated DeltaNet with SwiGLU (arXiv:2412.06464), on the embedded corpus.

train.py --config=configs/deltanet.py:tiny
"""

from configs import resize
from training.settings import defaults


def get_config(size="tiny"):
    c = defaults()
    c.model.layers = ("gated_deltanet+mlp",)
    c.model.directions.weights = "shared"  # where an objective shows both sides
    resize(c, size)
    return c
