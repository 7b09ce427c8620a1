"""Trains a Mixture of Experts with eight experts, two for each token.

Each expert is half as wide as the MLP of `dense.py`, so that a token costs the same. The load is
balanced by the loss of Switch (arXiv:2101.03961). Everything else is as in `dense.py`.

train.py --config=configs/moe.py:tiny
"""

from arch.channels.mlp import MlpConfig
from configs import apply_size, get_size
from training.settings import defaults


def get_config(size="tiny"):
    """Returns the settings of the Mixture of Experts of one size."""
    c = defaults()
    c.model.layers = ("attention+moe",)
    c.model.moe.width = MlpConfig().inner_dim(get_size(size).width) // 2
    apply_size(c, size)
    return c
