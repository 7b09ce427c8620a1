"""Published families at their published sizes, and at one that trains anywhere (`tiny`).

    train.py --config=configs/families/llama2.py:tiny

Each file cites where its numbers stand; tests/test_families.py holds the parameter counts. Weights
come from elsewhere (`hub/`): --init_from=FOLDER.
"""

from collections.abc import Mapping
from typing import Literal, TypeVar

from ml_collections import ConfigDict

from arch import ModelConfig
from errors import ConfigError
from schema import nearest
from training.flags import editable
from training.settings import Settings

T = TypeVar("T")
Objective = Literal["causal_lm", "masked_lm", "denoising"]


def pick(sizes: Mapping[str, T], size: str) -> T:
    """What `size` stands for; ConfigError if it is not known."""
    if size not in sizes:
        raise ConfigError(f"size {size!r} is not known; {nearest(size, sizes)}")
    return sizes[size]


def preset(model: ModelConfig, objective: Objective = "causal_lm") -> ConfigDict:
    """All settings around a model, as a config file edits them."""
    return editable(Settings(model=model, objective=objective))
