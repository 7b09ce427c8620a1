"""Provides published families at their published sizes, and at a size that trains anywhere (tiny).

    train.py --config=configs/families/llama2.py:tiny

Each file cites the source of its numbers. `FAMILY` is what differs from the defaults of ModelConfig
at all sizes, by dotted key; `SIZES` is what differs by size, in the order of the keys `COLUMNS`.
tests/hub/test_families.py checks the parameter counts. hub/ loads the weights: --init_from=FOLDER.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from ml_collections import ConfigDict

from arch import ModelConfig
from errors import ConfigError
from settings.tree import to_config_dict
from settings.types import did_you_mean
from training.settings import Settings

T = TypeVar("T")
Objective = Literal["causal_lm", "masked_lm", "denoising"]


def lookup_size(sizes: Mapping[str, T], size: str) -> T:
    """Returns the entry of a size.

    Raises:
        ConfigError: if there is no such size.
    """
    if size not in sizes:
        raise ConfigError(f"size {size!r} is not known; {did_you_mean(size, sizes)}")
    return sizes[size]


def size_changes(
    columns: Sequence[str], sizes: Mapping[str, Sequence[object]], size: str, vocab_size: int
) -> dict[str, object]:
    """Returns the changes of a size by dotted key: its row of a table under the keys `columns`.

    The published sizes have `vocab_size` token ids; the size tiny has those of the tokenizer.

    Raises:
        ConfigError: if there is no such size.
    """
    changes = dict(zip(columns, lookup_size(sizes, size), strict=True))
    if size == "tiny":
        return changes
    return changes | {"vocab_size": vocab_size, "vocab_multiple": 1}


def preset(model: ModelConfig, objective: Objective = "causal_lm") -> ConfigDict:
    """Returns all settings around a model, in the form that a config file edits."""
    return to_config_dict(Settings(model=model, objective=objective))
