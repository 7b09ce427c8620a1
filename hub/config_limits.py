"""Limits of the numbers in config.json, checked before a model is built from them.

A config describes a model, and the tensors beside it show how large that model can be: it has no
more layers than tensors, and no more experts than tensors or entries of an axis.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NoReturn, Protocol

from errors import CheckpointError
from hub.harmless_keys import IGNORED_KEYS
from settings.json_types import JsonObject

MAX_NUMBER = 2**31 - 1  # the largest index of an axis
MAX_TEXT = 4096  # characters of a value
MAX_LAYERS = 4096  # of a config without weights
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers")


class Shaped(Protocol):
    """The part of a tensor's entry that the limits need."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""


def check_limits(values: JsonObject, path: str, tensors: Mapping[str, Shaped] | None) -> None:
    """Checks the numbers of a config.json against the tensors of its folder.

    A number that is out of range, or a text that is too long, is refused by name.
    """
    if tensors is None:
        max_layers, largest = MAX_LAYERS, MAX_NUMBER
    else:
        max_layers = len(tensors)
        largest = max((n for entry in tensors.values() for n in entry.shape), default=0)
    for name, value in values.items():
        if name in IGNORED_KEYS:
            continue
        for number in _numbers(value):
            if not _is_in_range(number):
                _refuse(path, name, value, f"numbers are at most {MAX_NUMBER}")
        if isinstance(value, str) and len(value) > MAX_TEXT:
            _refuse(path, name, value, f"texts have at most {MAX_TEXT} characters")
        count = value if type(value) is int else 0
        if name in LAYER_KEYS and count > max_layers:
            _refuse(path, name, value, f"the weights have room for {max_layers}")
        if "experts" in name and count > max(max_layers, largest):
            _refuse(path, name, value, "the weights have not that many tensors or rows")


def _is_in_range(number: float) -> bool:
    """Returns whether a number has a float; an infinity is one, and an integer may have none."""
    if isinstance(number, int):
        return abs(number) <= MAX_NUMBER
    return math.isinf(number) or abs(number) <= 3.5e38


def _numbers(value: object) -> Iterable[float]:
    """Yields the numbers of a value, of a list, or of a dict of one or two levels."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, int | float) and not isinstance(item, bool):
            yield item
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            pending.extend(item.values())


def _refuse(path: str, name: str, value: object, rule: str) -> NoReturn:
    text = repr(value)
    shown = text if len(text) < 60 else f"{text[:57]}..."
    raise CheckpointError(f"{path}: {name} is {shown}, but {rule}; correct it")
