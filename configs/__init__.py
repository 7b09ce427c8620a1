"""Experiments as lab notes: claim, command, expected number; only differences from the defaults.

The one dial for size stands here: tiny, small, base and large are about 1, 10, 110 and 340 million
parameters without embedding, of those that a token meets. It implies how long and in which batches
to train, and how deep the pattern at hand has to be to cost as much as the others.
"""

import dataclasses
import math
from typing import NamedTuple

from ml_collections import ConfigDict

from arch import ModelConfig, cost
from errors import ConfigError
from schema import nearest
from training.tree import frozen

VOCAB = 384  # any will do: the table and the head are not counted


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


def sized(size: str) -> Size:
    """What `size` stands for; ConfigError if it is not known."""
    if size not in SIZES:
        raise ConfigError(f"size {size!r} is not known; {nearest(size, SIZES)}")
    return SIZES[size]


def resize(c: ConfigDict, size: str) -> None:
    """Set what `size` implies for the parts and pattern that `c.model` has by now."""
    chosen = sized(size)
    c.model.width = chosen.width
    for part in ("attention", "local_attention", "cross", "gated_deltanet"):
        c.model[part].heads = chosen.heads
    c.train.length, c.train.batch, c.train.steps = chosen.length, chosen.batch, chosen.steps
    c.optimizer.learning_rate = chosen.rate
    c.optimizer.warmup = chosen.steps // 50
    deepen(c.model, _met(ModelConfig(width=chosen.width, depth=chosen.depth, vocab=VOCAB)))
    if size in ("base", "large"):
        c.model.dtype, c.model.remat = "bfloat16", "dots"


def deepen(model: ConfigDict, wanted: int) -> None:
    """Set the depth (an encoder's too) at which a token meets nearest to `wanted` parameters."""
    blocks, first = len(model.layers), len(model.first)
    best = (math.inf, 0, 0)
    for rounds in range(1, 1000):
        model.depth = first + rounds * blocks
        if model.encoder.depth:
            model.encoder.depth = max(model.depth, len(model.encoder.layers))
        count = _met(dataclasses.replace(frozen(ModelConfig, model), vocab=VOCAB))
        if abs(count - wanted) < abs(best[0] - wanted):
            best = count, model.depth, model.encoder.depth
        if count > wanted:
            break
    _, model.depth, model.encoder.depth = best


def _met(model: ModelConfig) -> int:
    """Parameters that one token meets, without embedding and head."""
    return cost(model, 256).active_body_params
