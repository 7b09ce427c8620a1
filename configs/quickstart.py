"""Trains a Transformer of 3 million parameters on English text in minutes on two CPU cores.

    train.py --config=configs/quickstart.py

The model is dense, and reads the embedded corpus with a vocabulary of 2,048 pieces. A token has
three bytes on average, so that a few minutes suffice for 1.5 MB. Layers are recomputed in the
backward pass, which on a CPU is faster than reading them from memory.

Expect 2.113 bits per byte on the part of the test split that a run of this length scores, and 2.105
on the whole split (--config.eval.limit=0), after 2 minutes on two idle cores.
"""

from training.settings import defaults


def get_config():
    """Returns the settings of the quickstart."""
    c = defaults()
    c.data.tokenizer = "bpe:2048"
    c.model.width, c.model.depth = 256, 3
    c.model.remat = "full"
    c.train.batch_size, c.train.seq_len, c.train.steps = 8, 256, 240
    c.optimizer.name, c.optimizer.learning_rate, c.optimizer.adam_lr_ratio = "muon", 1e-2, 0.5
    c.optimizer.schedule, c.optimizer.cooldown_fraction = "wsd", 0.6
    c.optimizer.final_lr_ratio = 0.0
    c.optimizer.warmup = 1 / 12  # of the steps
    c.checkpoint.every = 100
    return c
