"""Reads goldens of single operations: float64 inputs and outputs of other implementations.

`tests/goldens/ops/NAME.safetensors` has tensors named `case.tensor`, and `index.json` has the
options of each case. The outputs are computed by plain numpy loops, and the gradients by float64
torch autograd.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

FOLDER = Path(__file__).parent / "goldens" / "ops"


def golden(name: str) -> Iterator[tuple[str, dict[str, Any], dict[str, np.ndarray]]]:
    """Yields (case, options, tensors) for every case of an operation."""
    options_by_case = json.loads((FOLDER / "index.json").read_text())[name]
    tensors = load_file(FOLDER / f"{name}.safetensors")
    for case, options in options_by_case.items():
        prefix = f"{case}."
        yield (
            case,
            options,
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)},
        )
