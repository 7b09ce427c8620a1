"""Recall improves with the size of the state (Zoology, arXiv:2312.04927).

    python -m eval.capability --config=configs/reproduce/mqar.py

Rows have 64 tokens with 8 of 32 keys; models have width 64 and two layers without channel mixers.
1,500 steps of 32 rows are 3.1 million tokens; the paper trains on 4.1e8, with a vocabulary of 8,192
and four learning rates. One learning rate, one seed, accuracy of 4,096 answers, chance .031:

    attention      .994 [.991, .996]
    mamba2, N=4    .520 [.504, .535]
    mamba2, N=16   .995 [.992, .997]
    mamba2, N=64   .998 [.996, .999]

Mamba-2 (arXiv:2405.21060, section 9.1) reports the same.
"""

from training.settings import defaults


def get_config():
    """Returns the model that the candidates vary."""
    c = defaults()
    c.model.width, c.model.depth = 64, 2
    c.model.layers = ("mamba2+none",)
    c.model.mamba2.head_dim = 64
    c.model.attention.heads = 1
    return c


def trial():
    """Returns the probe, the budget and the candidates."""
    return {
        "name": "mqar",
        "probe": {"num_pairs": 8, "num_values": 32},
        "budget": {
            "steps": 1500,
            "batch_size": 32,
            "train_length": 64,
            "test_lengths": (64,),
            "learning_rates": (5e-3,),
            "test_rows": 512,
        },
        "candidates": {
            "attention": {"layers": ("attention+none",)},
            "mamba2, N=4": {"mamba2": {"state_size": 4}},
            "mamba2, N=16": {"mamba2": {"state_size": 16}},
            "mamba2, N=64": {"mamba2": {"state_size": 64}},
        },
    }
