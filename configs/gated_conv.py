"""Gated short convolutions with SwiGLU: what can be done without recall.

train.py --config=configs/gated_conv.py:tiny
"""

from configs import resize
from training.settings import defaults


def get_config(size="tiny"):
    c = defaults()
    c.model.layers = ("gated_conv+mlp",)
    c.model.directions.weights = "shared"  # where an objective shows both sides
    resize(c, size)
    return c
