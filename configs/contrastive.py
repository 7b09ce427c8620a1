"""An encoder that finds a verse's other translation: a small Transformer from scratch on the verse
pairs of the embedded corpus, with a vocabulary of 4,096 pieces.

train.py --config=configs/contrastive.py
"""

from training.settings import defaults


def get_config():
    c = defaults()
    c.objective = "contrastive"
    c.data.tokenizer = "bpe:4096"
    c.model.width, c.model.depth = 192, 2
    c.model.embed.scale = 16.0  # what a token is outweighs what blocks say of it at first
    c.model.block.dropout = 0.1
    c.train.batch, c.train.length, c.train.steps = 64, 40, 240
    c.optimizer.learning_rate, c.optimizer.warmup = 3e-3, 15
    c.eval.every, c.checkpoint.every = 0, 100
    return c
