"""Provides experiments as configs: each states a claim, a command and an expected number.

A config contains only the differences from the defaults. `SIZES` defines the sizes of all
architectures: tiny, small, base and large have about 1, 10, 110 and 340 million active parameters
without embedding. A size implies the training length, the batch, and the depth at which an
architecture has as many active parameters as the others.
"""

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from arch import ModelConfig, compute_cost
from arch.scaling import require_declarations, sections_with_heads, size_settings
from errors import ConfigError
from settings.changes import with_changes
from settings.tree import assigned_keys, freeze
from settings.types import did_you_mean

REFERENCE_VOCAB = 384  # has no effect: embedding and head are not counted


class SizePreset(NamedTuple):
    """The shape of the dense reference model of a size, and the length of its training."""

    width: int
    depth: int  # of the dense Transformer; other architectures get the depth of equal size
    heads: int
    seq_len: int  # tokens
    batch_size: int  # rows
    steps: int
    learning_rate: float


SIZES = {
    "tiny": SizePreset(128, 5, 4, 256, 16, 1_000, 4e-3),
    "small": SizePreset(384, 6, 6, 512, 32, 5_000, 2e-3),
    "base": SizePreset(768, 16, 12, 1024, 256, 20_000, 1e-3),
    "large": SizePreset(1024, 27, 16, 1024, 512, 40_000, 6e-4),
}


def get_size(size: str) -> SizePreset:
    """Returns the preset of a size.

    Raises:
        ConfigError: if there is no such size.
    """
    if size not in SIZES:
        raise ConfigError(f"size {size!r} is not known; {did_you_mean(size, SIZES)}")
    return SIZES[size]


def apply_size(c: ConfigDict, size: str) -> None:
    """Sets width, depth, heads and training length of `c` for a size.

    Call it after the parts and the pattern of `c.model` are set, because the depth depends on them.

    Raises:
        ConfigError: if a part that the layers use has a size that is not known to follow the width.
    """
    preset = get_size(size)
    c.model.width = preset.width
    for section in sections_with_heads():
        c.model[section].heads = preset.heads
    c.train.seq_len, c.train.batch_size = preset.seq_len, preset.batch_size
    c.train.steps = preset.steps
    c.optimizer.learning_rate = preset.learning_rate
    c.optimizer.warmup = 0.02  # of the steps
    reference = ModelConfig(width=preset.width, depth=preset.depth, vocab_size=REFERENCE_VOCAB)
    match_params_by_depth(c.model, _active_params(reference))
    _check_sizes(c.model)
    if size in ("base", "large"):
        c.model.dtype, c.model.remat = "bfloat16", "dots"


def match_params_by_depth(model: ConfigDict, target_params: int) -> None:
    """Sets the depths whose number of active parameters is the closest to `target_params`."""
    closest = (math.inf, 0, 0)
    for repeats in range(1, 1000):
        model.depth = len(model.first_layers) + repeats * len(model.layers)
        if model.encoder.depth:
            model.encoder.depth = max(model.depth, len(model.encoder.layers))
        count = _active_params(
            with_changes(freeze(ModelConfig, model), {"vocab_size": REFERENCE_VOCAB})
        )
        if abs(count - target_params) < abs(closest[0] - target_params):
            closest = count, model.depth, model.encoder.depth
        if count > target_params:
            break
    _, model.depth, model.encoder.depth = closest


def _check_sizes(section: ConfigDict) -> None:
    """Checks that the parts which the layers use follow the width.

    Raises:
        ConfigError: if a part does not declare its sizes, or the default of a size is a number.
    """
    model = freeze(ModelConfig, section)
    require_declarations(model)
    assigned = set(assigned_keys(section))
    for setting in size_settings(model):
        if setting.is_scaled and setting.value and setting.key not in assigned:
            raise ConfigError(
                f"model.{setting.key} is {setting.value} at every size; assign it for this size "
                "before apply_size, or let its default be 0 and derive it from the width"
            )


def _active_params(model: ModelConfig) -> int:
    """Returns the active parameters without embedding and head."""
    return compute_cost(model, 256).active_non_embedding_params
