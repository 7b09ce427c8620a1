"""Mamba-2 blocks and nothing else (arXiv:2405.21060), on the embedded corpus.

train.py --config=configs/mamba2.py:tiny
"""

from configs import resize
from training.settings import defaults


def get_config(size="tiny"):
    c = defaults()
    c.model.layers = ("mamba2+none",)
    c.model.directions.weights = "shared"  # where an objective shows both sides
    resize(c, size)
    return c
