"""An isoFLOP study on two cores: the best size of dense and of Mamba-2 at three budgets.

    uv run compare.py --config=configs/compare/isoflop.py --dry_run
    uv run compare.py --config=configs/compare/isoflop.py --workdir=runs/compare/isoflop
    uv run python -m protocol.fit runs/compare/isoflop --out=runs/compare/isoflop/fit
    uv run leaderboard.py runs/compare/isoflop --fit=runs/compare/isoflop/fit/fit.json

72 runs: 2 candidates x 3 budgets x 6 sizes x 2 seeds, at the learning rate of the config. The sizes
are not tuned, so that the result holds at this rate. With bytes as tokens the head is small.
"""

from protocol.study.study import Study
from training.settings import defaults


def get_config():
    """Returns the settings that both candidates share."""
    c = defaults()
    c.data.tokenizer = "bytes"
    c.model.width, c.model.depth = 64, 2
    c.model.attention.heads = 4
    c.model.mamba2.head_dim, c.model.mamba2.state_size = 16, 16
    c.model.mamba2.chunk_size = 32
    c.train.batch_size, c.train.seq_len = 4, 128
    c.optimizer.learning_rate, c.optimizer.warmup = 8e-3, 0.1
    c.optimizer.schedule, c.optimizer.cooldown_fraction = "wsd", 0.4
    c.optimizer.final_lr_ratio = 0.0
    c.checkpoint.every = 100_000
    c.eval.tasks = ("bits_per_byte",)
    c.log.console, c.log.every = "off", 50
    return c


def study():
    """Returns what is compared: minima, at each of three budgets."""
    return Study(
        candidates={"dense": {}, "mamba2": {"model.layers": ("mamba2+none",)}},
        reference="dense",
        comparisons=(("mamba2", "dense"),),
        margin=0.02,  # Bits per byte.
        match_by="isoflop",
        budgets=(3e11, 6e11, 1.2e12),
        seeds=(0, 1),
    )
