"""Dense, Mixture of Experts, Mamba-2 and a hybrid at equal training FLOPs and equal tokens.

    compare.py --config=configs/compare/quickstart.py

Three seeds of a tiny size on the embedded corpus: not what these architectures do at scale, but the
whole of the method in less than ten minutes on two CPU cores. Mamba-2, whose size moves in the
largest steps, sets the cost; the width of the others' channels is solved to it.
"""

from protocol.study import Study
from training.settings import defaults


def get_config():
    c = defaults()
    c.data.tokenizer = "bpe:1024"
    c.model.width, c.model.depth = 96, 4
    c.model.attention.heads, c.model.mamba2.head_width = 4, 64
    c.model.mamba2.state, c.model.mamba2.chunk = 40, 32
    c.model.mamba2.norm_eps = 1e-5  # of the authors' code, and of the recorded runs
    c.model.mlp.width = 256
    c.model.moe.experts, c.model.moe.width = 4, 128
    c.train.batch, c.train.length, c.train.steps = 8, 256, 60
    c.optimizer.learning_rate, c.optimizer.warmup = 8e-3, 6
    c.optimizer.schedule, c.optimizer.decay, c.optimizer.final = "wsd", 0.4, 0.0
    c.checkpoint.every = 1000
    c.eval.tasks = ("bits_per_byte",)
    c.log.console = "off"
    return c


def study():
    return Study(
        candidates={
            "dense": {},
            "moe": {"model.layers": ("attention+moe",)},
            "mamba2": {
                "model.layers": ("mamba2+none",),
                "model.width": 128,
                "model.remat": "full",  # the faster way for it on a CPU; the same function
            },
            "hybrid": {"model.layers": ("mamba2+mlp", "mamba2+mlp", "attention+mlp", "mamba2+mlp")},
        },
        reference="mamba2",
        comparisons=(("moe", "dense"), ("mamba2", "dense"), ("hybrid", "dense")),
        margin=0.02,
        recorded="results/quickstart",
    )
