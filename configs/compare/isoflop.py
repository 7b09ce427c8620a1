"""An isoFLOP study on two cores: the best size of dense and of Mamba-2 at three budgets.

    uv run compare.py --config=configs/compare/isoflop.py --dry_run
    uv run compare.py --config=configs/compare/isoflop.py --workdir=runs/compare/isoflop
    uv run python -m protocol.fit runs/compare/isoflop --out=runs/compare/isoflop/fit
    uv run leaderboard.py runs/compare/isoflop --fit=runs/compare/isoflop/fit/fit.json

72 runs: 2 candidates x 3 budgets x 6 sizes x 2 seeds. Each candidate has the learning rate that was
best at the width 64 in 1,000 steps, and under muP it stays near the best at other widths:

    uv run python -m protocol.transfer --config=configs/compare/isoflop.py --widths=64 --seeds=2 \
        --config.train.steps=1000

With bytes as tokens the head is small.
"""

from protocol.study.study import Study
from training.settings import defaults


def get_config():
    """Returns the settings that both candidates share."""
    c = defaults()
    c.data.tokenizer = "bytes"
    c.model.width, c.model.depth = 64, 2
    c.model.parametrization, c.model.base_width = "mup", 64
    c.model.attention.heads = 4
    c.model.mamba2.head_dim, c.model.mamba2.state_size = 16, 16
    c.model.mamba2.chunk_size = 32
    c.train.batch_size, c.train.seq_len = 4, 128
    c.optimizer.learning_rate, c.optimizer.warmup = 4e-3, 0.1
    c.optimizer.schedule, c.optimizer.cooldown_fraction = "wsd", 0.4
    c.optimizer.final_lr_ratio = 0.0
    c.checkpoint.every = 100_000
    c.eval.tasks = ("bits_per_byte",)
    c.log.console, c.log.every = "off", 50
    return c


def study():
    """Returns what is compared: minima, at each of three budgets."""
    return Study(
        candidates={
            "dense": {},
            "mamba2": {"model.layers": ("mamba2+none",), "optimizer.learning_rate": 6e-3},
        },
        reference="dense",
        comparisons=(("mamba2", "dense"),),
        margin=0.02,  # Bits per byte.
        match_by="isoflop",
        budgets=(3e11, 6e11, 1.2e12),
        tokens_per_param={"dense": 32},  # Near its minima; those of Mamba-2 are near the default.
        seeds=(0, 1),
    )
