"""Trains a bidirectional encoder that predicts masked tokens (BERT, arXiv:1810.04805).

It has the rotary positions and GeGLU of ModernBERT (arXiv:2412.13663).

train.py --config=configs/encoder.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of the masked language model of one size."""
    c = defaults()
    c.objective = "masked_lm"
    c.masked_lm.mask_rate = 0.3
    c.model.mlp.activation = "gelu"
    apply_size(c, size)
    return c
