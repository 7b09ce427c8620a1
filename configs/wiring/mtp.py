"""Trains a Transformer with one module of multi-token prediction (arXiv:2412.19437, section 2.2).

train.py --config=configs/wiring/mtp.py:tiny
"""

from configs import apply_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of a Transformer that also predicts the token after the next one."""
    c = defaults()
    c.model.layers = ("attention+mlp",)
    c.causal_lm.mtp_depth = 1
    apply_size(c, size)
    return c
