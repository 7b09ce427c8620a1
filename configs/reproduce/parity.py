"""Eigenvalues down to -1 let a linear recurrence track parity (Grazzi et al., arXiv:2411.12537).

    python -m eval.capability --config=configs/reproduce/parity.py --only=signed,attention,mamba2

Lessons of 40 bits, one layer of width 32 (two of attention), one learning rate, one seed; a step
size that starts small, without which nothing is remembered long enough to be learned in so few
steps. Accuracy of 256 last answers, chance .5:

    length       40     80    160    256
    signed    1.000  1.000   .973   .887
    attention  .504   .461   .527   .488
    mamba2     .508   .473   .531   .484

Five minutes on two busy cores. After 2,000 steps instead of 800 `signed` is at 1.000, 1.000, 1.000
and .965. Neither attention nor Mamba-2 learns even the length of the lessons at this rate, which
was not tuned for them: what they could do with another one these numbers do not say.
"""

from training.settings import defaults


def get_config():
    c = defaults()
    c.model.width = 32
    c.model.depth = 1
    c.model.layers = ("gated_deltanet+mlp",)
    c.model.gated_deltanet.heads = 2
    c.model.gated_deltanet.key_width = c.model.gated_deltanet.value_width = 16
    c.model.gated_deltanet.step.low, c.model.gated_deltanet.step.high = 1e-4, 1e-3
    return c


def trial():
    return {
        "name": "parity",
        "budget": {
            "steps": 800,
            "batch": 64,
            "length": 40,
            "tests": (40, 80, 160, 256),
            "rates": (1e-2,),
            "rows": 256,
        },
        "candidates": {
            "signed": {"gated_deltanet": {"signed": True}},
            "mamba2": {
                "layers": ("mamba2+mlp",),
                "mamba2": {"state": 16, "head_width": 32, "step": {"low": 1e-4, "high": 1e-3}},
            },
            "attention": {"layers": ("attention+mlp",), "attention": {"heads": 2}, "depth": 2},
        },
    }
