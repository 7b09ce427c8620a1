"""Three Mamba-2 blocks to one of attention, SwiGLU in all (as Jamba, arXiv:2403.19887, mixes them).

train.py --config=configs/hybrid.py:tiny
"""

from configs import resize
from training.settings import defaults


def get_config(size="tiny"):
    c = defaults()
    c.model.layers = ("mamba2+mlp",) * 3 + ("attention+mlp",)
    c.model.directions.weights = "shared"  # where an objective shows both sides
    resize(c, size)
    return c
