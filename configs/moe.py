"""Eight experts, two a token, each half as wide as the dense MLP: a token costs what it does there.

Balanced by Switch's loss (arXiv:2101.03961); otherwise the dense Transformer of `dense.py`.

train.py --config=configs/moe.py:tiny
"""

from arch.mlp import MlpConfig
from configs import resize, sized
from training.settings import defaults


def get_config(size="tiny"):
    c = defaults()
    c.model.layers = ("attention+moe",)
    c.model.moe.width = MlpConfig().size(sized(size).width) // 2
    resize(c, size)
    return c
