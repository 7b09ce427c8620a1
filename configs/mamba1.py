"""Mamba-1 blocks and nothing else (arXiv:2312.00752), on the embedded corpus.

train.py --config=configs/mamba1.py:tiny
"""

from configs import resize
from training.settings import defaults


def get_config(size="tiny"):
    c = defaults()
    c.model.layers = ("mamba1+none",)
    c.model.directions.weights = "shared"  # where an objective shows both sides
    resize(c, size)
    return c
