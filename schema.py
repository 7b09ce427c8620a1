"""Settings as frozen dataclasses whose annotations state what a value may be.

    @config
    class MlpConfig:
        width: Natural = 0  # F; 0: 4 D
        activation: Literal["gelu", "relu"] = "gelu"

`@config` is `dataclass(frozen=True)` that checks every field when an object is made, from a file, a
flag or code alike; a class may add `check(self)` for rules between fields. Types used in settings:
bool, int, float, str, `Literal`, tuples of these, other configs, and `Mapping[str, Mapping]` for
sections whose names the user chooses.
"""

import dataclasses
import difflib
import functools
import math
import sys
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from errors import ConfigError

LARGEST = 2**31 - 1  # of counts, of which nobody need be told: what counts them has 32 bits


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number; `open_low` and `open_high` exclude the bound itself."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = "" if self.low == -math.inf else f"{'>' if self.open_low else '>='} {self.low:g}"
        open_end = self.high in (math.inf, LARGEST)
        high = "" if open_end else f"{'<' if self.open_high else '<='} {self.high:g}"
        return " and ".join(filter(None, (low, high))) or "any finite number"


Count = Annotated[int, Range(low=1, high=LARGEST)]
Natural = Annotated[int, Range(low=0, high=LARGEST)]
Positive = Annotated[float, Range(low=0, open_low=True)]
NonNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(low=0, high=1)]
Rate = Annotated[float, Range(low=0, high=1, open_high=True)]  # of dropout: 1 would drop everything
Momentum = Rate


T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass; a value that its annotations do not admit is a ConfigError."""

    def __post_init__(self: Any) -> None:
        hints = annotations(type(self))  # type: ignore[arg-type]
        for field in dataclasses.fields(self):
            key = f"{type(self).__name__}.{field.name}"
            value = fit(getattr(self, field.name), hints[field.name], key)
            object.__setattr__(self, field.name, value)
        if hasattr(self, "check"):
            self.check()

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True)(cls)


@functools.cache
def annotations(cls: Any) -> dict[str, Any]:
    """The annotations of `cls` with their ranges, by field."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def changed(base: T, changes: Mapping[str, Any], path: str) -> T:
    """`base` with `changes`, sections inside it changed in their turn; ConfigError below `path`."""
    hints, new = annotations(type(base)), {}  # type: ignore[arg-type]
    for name, value in changes.items():
        key = f"{path}.{name}"
        if name not in hints:
            raise ConfigError(f"unknown key {key}; {nearest(name, hints)}")
        old = getattr(base, name)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{key} is {value!r}, must be a section of named values")
            new[name] = changed(old, value, key)
        else:
            new[name] = fit(value, hints[name], key)
    return dataclasses.replace(base, **new)  # type: ignore[type-var]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest known one, else all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(map(str, known))}"


def fit(value: Any, hint: Any, key: str) -> Any:
    """`value` in the type and range of `hint`, else ConfigError on `key`; ints serve as floats."""
    if typing.get_origin(hint) is Annotated:
        base, *extra = typing.get_args(hint)
        value = fit(value, base, key)
        for bound in (e for e in extra if isinstance(e, Range)):
            if value not in bound:
                most = bound.high == LARGEST and value > LARGEST
                rule = f"at most {LARGEST:,}" if most else str(bound)
                raise ConfigError(f"{key} is {value!r}, must be {rule}")
        return value
    origin = typing.get_origin(hint)
    if origin is Literal:
        return _choice(value, typing.get_args(hint), key)
    if origin is tuple:
        return _items(value, typing.get_args(hint), key)
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} is {value!r}, must be a section of named values")
        return Frozen(value)
    if hint is float and type(value) is int:
        if abs(value) > sys.float_info.max:
            raise ConfigError(f"{key} is an integer too large for a number")
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{key} is {value!r} ({type(value).__name__}), must be {_name(hint)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} is {value!r}, must be a finite number")
    return value


class Frozen(Mapping[str, Any]):
    """A mapping that hashes and compares by content; nested mappings and lists are frozen too."""

    def __init__(self, items: Mapping[str, Any]):
        self._items = {k: _freeze(v) for k, v in sorted(items.items())}

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self):
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __repr__(self) -> str:
        return repr(self._items)


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Frozen(value)
    return tuple(map(_freeze, value)) if isinstance(value, (list, tuple)) else value


def _choice(value: Any, known: tuple, key: str) -> Any:
    if type(value) not in map(type, known) or value not in known:
        raise ConfigError(f"{key} is {value!r}; {nearest(str(value), map(str, known))}")
    return value


def _items(value: Any, hints: tuple, key: str) -> tuple:
    if not isinstance(value, (tuple, list)):
        raise ConfigError(f"{key} is {value!r} ({type(value).__name__}), must be a tuple")
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        raise ConfigError(f"{key} is {value!r}, must have {len(hints)} entries")
    return tuple(
        fit(v, h, f"{key}[{i}]") for i, (v, h) in enumerate(zip(value, hints, strict=True))
    )


def _name(hint: Any) -> str:
    return {int: "an integer", float: "a number", bool: "True or False", str: "text"}.get(
        hint, str(hint)
    )
