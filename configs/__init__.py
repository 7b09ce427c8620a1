"""Experiments as lab notes: claim, command, expected number; only differences from the defaults.

The one dial for size stands here: tiny, small, base and large are about 1, 10, 110 and 340 million
parameters without embedding. It implies how long and in which batches to train.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from errors import ConfigError
from schema import nearest


class Size(NamedTuple):
    width: int
    depth: int
    heads: int
    length: int
    batch: int
    steps: int
    rate: float


SIZES = {
    "tiny": Size(128, 5, 4, 256, 16, 1_000, 4e-3),
    "small": Size(384, 6, 6, 512, 32, 5_000, 2e-3),
    "base": Size(768, 16, 12, 1024, 256, 20_000, 1e-3),
    "large": Size(1024, 27, 16, 1024, 512, 40_000, 6e-4),
}


def resize(c: ConfigDict, size: str) -> None:
    """Set what `size` implies."""
    if size not in SIZES:
        raise ConfigError(f"size {size!r} is not known; {nearest(size, SIZES)}")
    chosen = SIZES[size]
    c.model.width, c.model.depth = chosen.width, chosen.depth
    c.model.attention.heads = chosen.heads
    c.train.length, c.train.batch, c.train.steps = chosen.length, chosen.batch, chosen.steps
    c.optimizer.learning_rate = chosen.rate
    c.optimizer.warmup = chosen.steps // 50
    if size in ("base", "large"):
        c.model.dtype, c.model.remat = "bfloat16", "dots"
