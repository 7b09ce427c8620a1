"""Recall grows with the state (Zoology, arXiv:2312.04927; Mamba-2, arXiv:2405.21060, section 9.1).

python -m eval.capability --config=configs/reproduce/mqar.py
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
        "probe": {"pairs": 8, "values": 64},
        "budget": {
            "steps": 1500,
            "batch": 64,
            "length": 64,
            "tests": (64,),
            "rates": (3e-3,),
            "rows": 512,
        },
        "candidates": {
            "attention": {"layers": ("attention+none",)},
            "mamba2, N=4": {"mamba2": {"state": 4}},
            "mamba2, N=16": {"mamba2": {"state": 16}},
            "mamba2, N=64": {"mamba2": {"state": 64}},
        },
    }
