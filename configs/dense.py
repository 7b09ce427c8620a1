"""Trains a dense Transformer with rotary positions and SwiGLU, as in LLaMA, on the embedded corpus.

train.py --config=configs/dense.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of a dense Transformer of one size."""
    c = defaults()
    apply_size(c, size)
    return c
