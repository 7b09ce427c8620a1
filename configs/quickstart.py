"""A Transformer of 3 million parameters learns English on two CPU cores.

    train.py --config=configs/quickstart.py

Dense, on the embedded corpus, with 2,048 pieces of text as its vocabulary: three bytes a token, so
that a few minutes see 1.5 MB. Layers are computed again in the backward pass, which on a CPU is
faster than to fetch them from memory.

Expect 2.105 bits per byte on the test split, in 3 minutes on two quiet cores.
"""

from training.settings import defaults


def get_config():
    c = defaults()
    c.data.tokenizer = "bpe:2048"
    c.model.width, c.model.depth = 256, 3
    c.model.remat = "full"
    c.train.batch, c.train.length, c.train.steps = 8, 256, 240
    c.optimizer.name, c.optimizer.learning_rate, c.optimizer.muon_rate = "muon", 1e-2, 0.5
    c.optimizer.schedule, c.optimizer.decay, c.optimizer.final = "wsd", 0.6, 0.0
    c.optimizer.warmup = 20
    c.checkpoint.every = 100
    return c
