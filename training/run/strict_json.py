"""Strict JSON: no NaN and no infinity, no repeated keys, and a form for the values of a run.

Numbers that are not finite are written as the strings "NaN", "Infinity" and "-Infinity", which
`from_json_number` converts back.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

NONFINITE_STRINGS = ("NaN", "Infinity", "-Infinity")


def encode_json(value: object, indent: int | None = None) -> str:
    """Returns `value` as strict JSON text; see `to_json_value`."""
    return json.dumps(to_json_value(value), allow_nan=False, indent=indent)


def decode_json(text: str) -> Any:
    """Parses strict JSON: NaN, Infinity and repeated keys are errors.

    Raises:
        ValueError: if the text is not strict JSON or is nested too deep.
    """
    try:
        return json.loads(
            text, parse_constant=_reject_constant, object_pairs_hook=_reject_duplicate_keys
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def to_json_value(value: object) -> Any:
    """Converts `value` for JSON: dataclasses to objects, tuples to lists, numpy to numbers.

    Raises:
        TypeError: if a value has no form in JSON.
    """
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): to_json_value(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json_value(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json_value(value.__dict__[f.name]) for f in dataclasses.fields(value)}
    if isinstance(value, (np.generic, np.ndarray)):
        return to_json_value(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def from_json_number(value: object) -> object:
    """Returns `value`; a string that stands for a non-finite number becomes that number."""
    return float(value) if isinstance(value, str) and value in NONFINITE_STRINGS else value


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    items = dict(pairs)
    if len(items) < len(pairs):
        raise ValueError("a key occurs twice")
    return items
