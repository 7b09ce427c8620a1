"""An LSTM with SwiGLU between its layers: the baseline from before Transformers.

train.py --config=configs/lstm.py:tiny
"""

from configs import resize
from training.settings import defaults


def get_config(size="tiny"):
    c = defaults()
    c.model.layers = ("lstm+mlp",)
    c.model.directions.weights = "shared"  # where an objective shows both sides
    resize(c, size)
    return c
