r"""Eigenvalues down to -1 let a linear recurrence track parity (Grazzi et al., arXiv:2411.12537).

    python -m eval.capability --config=configs/reproduce/parity.py \
        --candidates=signed,attention,mamba2

Training rows have 40 bits. Models have width 32 and one layer (attention has two). There is one
learning rate and one seed. The time step dt starts small; otherwise the state decays before so few
steps can teach the model to use it. Accuracy of 256 last answers, chance .5:

    length       40     80    160    256
    signed    1.000  1.000   .973   .887
    attention  .504   .461   .527   .488
    mamba2     .508   .473   .531   .484

The command takes five minutes on two busy cores. After 2,000 steps instead of 800 the candidate
`signed` reaches 1.000, 1.000, 1.000 and .965. Neither attention nor Mamba-2 learns even the
training length at this learning rate, which was not tuned for them. These numbers do not show what
they could reach with another learning rate.
"""

from training.settings import defaults


def get_config():
    """Returns the model that the candidates vary."""
    c = defaults()
    c.model.width = 32
    c.model.depth = 1
    c.model.layers = ("gated_deltanet+mlp",)
    c.model.gated_deltanet.heads = 2
    c.model.gated_deltanet.key_dim = c.model.gated_deltanet.value_dim = 16
    c.model.gated_deltanet.dt.dt_min, c.model.gated_deltanet.dt.dt_max = 1e-4, 1e-3
    return c


def trial():
    """Returns the budget and the candidates."""
    return {
        "name": "parity",
        "budget": {
            "steps": 800,
            "batch_size": 64,
            "train_length": 40,
            "test_lengths": (40, 80, 160, 256),
            "learning_rates": (1e-2,),
            "test_rows": 256,
        },
        "candidates": {
            "signed": {"gated_deltanet": {"allow_negative_eigenvalues": True}},
            "mamba2": {
                "layers": ("mamba2+mlp",),
                "mamba2": {
                    "state_size": 16,
                    "head_dim": 32,
                    "dt": {"dt_min": 1e-4, "dt_max": 1e-3},
                },
            },
            "attention": {"layers": ("attention+mlp",), "attention": {"heads": 2}, "depth": 2},
        },
    }
