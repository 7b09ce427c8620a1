"""Goldens of single operations: float64 inputs and outputs made by other implementations.

`tests/goldens/ops/NAME.safetensors` holds tensors named `case.tensor`; `index.json` the options of
each case. Their definitions are plain numpy loops, their gradients float64 torch autograd.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

FOLDER = Path(__file__).parent / "goldens" / "ops"


def golden(name: str) -> Iterator[tuple[str, dict[str, Any], dict[str, np.ndarray]]]:
    """(case, options, tensors) of every case of an operation."""
    options = json.loads((FOLDER / "index.json").read_text())[name]
    tensors = load_file(FOLDER / f"{name}.safetensors")
    for case, chosen in options.items():
        own = {
            k.removeprefix(f"{case}."): v for k, v in tensors.items() if k.startswith(f"{case}.")
        }
        yield case, chosen, own
