"""A byte-level Transformer of 3 million parameters learns English on two CPU cores."""

from training.settings import defaults


def get_config():
    c = defaults()
    c.train.steps = 100
    c.optimizer.name = "muon"
    return c
