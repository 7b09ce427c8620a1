"""A dense Transformer with rotary positions and SwiGLU (LLaMA's block), on the embedded corpus.

train.py --config=configs/dense.py:tiny
"""

from configs import resize
from training.settings import defaults


def get_config(size="tiny"):
    c = defaults()
    resize(c, size)
    return c
