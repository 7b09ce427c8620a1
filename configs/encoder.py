"""A bidirectional encoder that recovers hidden tokens (BERT, arXiv:1810.04805), with the rotary
positions and GeGLU of ModernBERT (arXiv:2412.13663), on the embedded corpus.

train.py --config=configs/encoder.py:tiny
"""

from configs import resize
from training.settings import defaults


def get_config(size="tiny"):
    c = defaults()
    c.objective = "masked_lm"
    c.masked_lm.rate = 0.3
    c.model.mlp.activation = "gelu"
    resize(c, size)
    return c
