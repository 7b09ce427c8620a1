"""Recall grows with the state (Zoology, arXiv:2312.04927; Mamba-2, arXiv:2405.21060, section 9.1).

    python -m eval.capability --config=configs/reproduce/mqar.py

Rows of 64 tokens with 8 of 32 keys, width 64, two layers without channels: 1,500 steps of 32 rows
are 3.1 million tokens, where the paper has 4.1e8, 8,192 tokens to tell apart and four rates. One
rate, one seed; accuracy of 4,096 answers, chance .031:

    attention      .994 [.991, .996]
    mamba2, N=4    .520 [.504, .535]
    mamba2, N=16   .995 [.992, .997]
    mamba2, N=64   .998 [.996, .999]
"""

from training.settings import defaults


def get_config():
    c = defaults()
    c.model.width, c.model.depth = 64, 2
    c.model.layers = ("mamba2+none",)
    c.model.mamba2.head_width = 64
    c.model.attention.heads = 1
    return c


def trial():
    return {
        "name": "mqar",
        "probe": {"pairs": 8, "values": 32},
        "budget": {
            "steps": 1500,
            "batch": 32,
            "length": 64,
            "tests": (64,),
            "rates": (5e-3,),
            "rows": 512,
        },
        "candidates": {
            "attention": {"layers": ("attention+none",)},
            "mamba2, N=4": {"mamba2": {"state": 4}},
            "mamba2, N=16": {"mamba2": {"state": 16}},
            "mamba2, N=64": {"mamba2": {"state": 64}},
        },
    }
