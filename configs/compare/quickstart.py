"""Compares dense, Mixture of Experts, Mamba-2 and hybrid at equal training FLOPs and equal tokens.

    compare.py --config=configs/compare/quickstart.py

The study trains three seeds of a tiny size on the embedded corpus. It does not show what these
architectures do at scale, but it runs the complete method in less than ten minutes on two CPU
cores. Mamba-2 is the reference of the cost, because its size changes in the largest steps, and the
width of the other candidates' channels is solved to match this cost.
"""

from protocol.study.study import Study
from training.settings import defaults


def get_config():
    """Returns the settings that all candidates share."""
    c = defaults()
    c.data.tokenizer = "bpe:1024"
    c.model.width, c.model.depth = 96, 4
    c.model.attention.heads, c.model.mamba2.head_dim = 4, 64
    c.model.mamba2.state_size, c.model.mamba2.chunk_size = 40, 32
    c.model.mamba2.norm_eps = 1e-5  # as in the authors' code and in the recorded runs
    c.model.mlp.width = 256
    c.model.moe.num_experts, c.model.moe.width = 4, 128
    c.train.batch_size, c.train.seq_len, c.train.steps = 8, 256, 60
    c.optimizer.learning_rate, c.optimizer.warmup = 8e-3, 6
    c.optimizer.schedule, c.optimizer.cooldown_fraction = "wsd", 0.4
    c.optimizer.final_lr_ratio = 0.0
    c.checkpoint.every = 1000
    c.eval.tasks = ("bits_per_byte",)
    c.log.console = "off"
    return c


def study():
    """Returns the study of four architectures."""
    return Study(
        candidates={
            "dense": {},
            "moe": {"model.layers": ("attention+moe",)},
            "mamba2": {
                "model.layers": ("mamba2+none",),
                "model.width": 128,
                "model.remat": "full",  # faster on a CPU; computes the same function
            },
            "hybrid": {"model.layers": ("mamba2+mlp", "mamba2+mlp", "attention+mlp", "mamba2+mlp")},
        },
        reference="mamba2",
        comparisons=(("moe", "dense"), ("mamba2", "dense"), ("hybrid", "dense")),
        margin=0.02,
        results_dir="results/quickstart",
    )
