"""Settings as frozen dataclasses whose annotations state the permitted values.

    @config
    class MlpConfig:
        width: NonNegativeInt = 0  # Width of the hidden layer (F); 0 derives it: 4 D.
        activation: Literal["gelu", "relu"] = "gelu"  # Activation function.

`@config` is `dataclass(frozen=True)` with a check of each field when an object is created, whether
from a file, a flag or code. A class may add `check(self)` for rules between fields. Types used in
settings: bool, int, float, str, `Literal`, tuples of these, other configs, and
`Mapping[str, Mapping]` for sections whose names the user chooses. Names that a table lists are
listed nowhere else: `OneOf` takes the choices of a setting from it, `with_sections` the sections.
"""

import dataclasses
import difflib
import functools
import math
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from errors import ConfigError
from settings.renames import find_new_name, find_new_value

# An annotation: a class, `Literal[...]`, `tuple[...]` or `Annotated[...]`. Python has no type for
# all of them (PEP 747 proposes one).
TypeHint = Any
MAX_INT32 = 2**31 - 1  # limit of all integer settings, because arrays count with 32 bits
# Sizes of float settings other than 0, because float32 makes infinity or 0 of others.
MIN_FLOAT32, MAX_FLOAT32 = 1.2e-38, 3.4e38


@dataclasses.dataclass(frozen=True)
class Range:
    """The bounds of a number; `open_low` and `open_high` exclude the bound itself."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = (
            "" if self.low == -math.inf else f"{'>' if self.open_low else '>='} {_exact(self.low)}"
        )
        open_end = self.high in (math.inf, MAX_INT32)
        high = "" if open_end else f"{'<' if self.open_high else '<='} {_exact(self.high)}"
        return " and ".join(filter(None, (low, high))) or "any finite number"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The choices of a text that are the names of a table: `Annotated[str, OneOf(tuple(TABLE))]`.

    It permits what a `Literal` of the same names permits.
    """

    names: tuple[str, ...]


PositiveInt = Annotated[int, Range(low=1, high=MAX_INT32)]
NonNegativeInt = Annotated[int, Range(low=0, high=MAX_INT32)]
# A seed of random numbers. JAX takes 32 bits of it, so that larger ones would repeat these.
Seed = Annotated[int, Range(low=0, high=2**32 - 1)]
PositiveFloat = Annotated[float, Range(low=0, open_low=True)]
NonNegativeFloat = Annotated[float, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]
# A probability of dropout or a decay rate: 1 would drop or keep everything.
Probability = Annotated[float, Range(low=0, high=1, open_high=True)]

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Makes `cls` a frozen dataclass that refuses values which its annotations do not permit.

    Raises:
        ConfigError: when an object with such a value is created.
    """

    def __post_init__(self: T) -> None:
        hints = field_types(type(self))  # type: ignore[arg-type]
        for field in config_fields(self):
            key = f"{type(self).__name__}.{field.name}"
            value = validate(getattr(self, field.name), hints[field.name], key)
            object.__setattr__(self, field.name, value)
        if hasattr(self, "check"):
            self.check()

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True)(cls)


def with_sections(sections: Mapping[str, type], *, after: str) -> Callable[[type[T]], type[T]]:
    """Returns a decorator, used below `@config`, that adds a field for each section of a table.

    The fields have the names in the table and follow the field `after`.
    """

    def add_fields(cls: type[T]) -> type[T]:
        annotations: dict[str, object] = {}
        for name, hint in cls.__annotations__.items():
            annotations[name] = hint
            if name == after:
                annotations |= sections
        cls.__annotations__ = annotations
        for name, section in sections.items():
            setattr(cls, name, section())
        return cls

    return add_fields


def config_fields(settings: object) -> tuple[dataclasses.Field, ...]:
    """Returns the fields of a settings class, or of an object of one."""
    return dataclasses.fields(settings)  # type: ignore[arg-type]  # mypy does not know `config`


@functools.cache
def field_types(cls: type) -> dict[str, TypeHint]:
    """Returns the annotations of `cls` with their ranges, by field."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in config_fields(cls)}


def is_digits(text: str) -> bool:
    """Whether a text is a number of 1 to 18 digits from 0 to 9; isdecimal takes all scripts."""
    return text.isascii() and text.isdecimal() and len(text) <= 18


def unknown_key_hint(key: str, choices: Iterable[str]) -> str:
    """Returns a hint for an unknown dotted key: its new name, or the nearest valid one."""
    if new_name := find_new_name("settings", key.removeprefix("config.")):
        return f"it is now {new_name!r}"
    return did_you_mean(key.rpartition(".")[2], choices)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns a hint for an unknown name: the closest choice, or all choices if none is close.

    A name of at least three letters that begins one choice alone is close to it.
    """
    choices = list(map(str, choices))
    completions = [choice for choice in choices if len(name) > 2 and choice.startswith(name)]
    close = difflib.get_close_matches(name, choices, 1, 0.6)
    close = completions if len(completions) == 1 else close
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices)}"


def check_divides(key: str, value: int, total_key: str, total: int) -> None:
    """Checks that a number divides another one.

    Args:
        key: the setting with the divisor.
        value: the divisor.
        total_key: the setting with the number that is divided.
        total: this number.

    Raises:
        ConfigError: if it does not; the message has all divisors.
    """
    if total % value:
        small = [n for n in range(1, math.isqrt(total) + 1) if total % n == 0]
        divisors = sorted({*small, *(total // n for n in small)})
        raise ConfigError(
            f"{key} {value} does not divide {total_key} {total}; choose one of "
            f"{', '.join(map(str, divisors))}"
        )


def validate(value: Any, hint: TypeHint, key: str) -> Any:
    """Returns `value` converted to the annotation `hint`; an int is accepted as a float.

    Raises:
        ConfigError: if the type or the range is wrong; the message names `key`.
    """
    if typing.get_origin(hint) is Annotated:
        base, *metadata = typing.get_args(hint)
        for choice in (m for m in metadata if isinstance(m, OneOf)):
            return _validate_choice(value, choice.names, key)
        value = validate(value, base, key)
        for bound in (m for m in metadata if isinstance(m, Range)):
            if value not in bound:
                too_large = bound.high == MAX_INT32 and value > MAX_INT32
                rule = f"at most {MAX_INT32:,}" if too_large else str(bound)
                raise ConfigError(f"{key} is {value!r}, must be {rule}")
        return value
    origin = typing.get_origin(hint)
    if origin is Literal:
        return _validate_choice(value, typing.get_args(hint), key)
    if origin is tuple:
        return _validate_items(value, typing.get_args(hint), key)
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} is {value!r}, must be a section of named values")
        return FrozenDict(value)
    if hint is float and type(value) is int:
        if abs(value) > sys.float_info.max:
            raise ConfigError(f"{key} is too large an integer for a float")
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(
            f"{key} is {value!r} ({type(value).__name__}), must be {_type_name(hint)}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} is {value!r}, must be a finite number")
    if isinstance(value, float) and value and not MIN_FLOAT32 <= abs(value) <= MAX_FLOAT32:
        limit = f"at most {MAX_FLOAT32:g}" if abs(value) > 1 else f"0 or at least {MIN_FLOAT32:g}"
        raise ConfigError(f"{key} is {value!r}, must be {limit} in size, which float32 holds")
    return value


class FrozenDict(Mapping[str, Any]):
    """An immutable mapping that hashes and compares by content; its values are frozen too."""

    def __init__(self, items: Mapping[str, object]):
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


def _freeze(value: object) -> object:
    if isinstance(value, Mapping):
        return FrozenDict(value)
    return tuple(map(_freeze, value)) if isinstance(value, (list, tuple)) else value


def _validate_choice(value: T, choices: tuple, key: str) -> T:
    if type(value) not in map(type, choices) or value not in choices:
        new_value = find_new_value(key.rpartition(".")[2], str(value))
        hint = (
            f"it is now {new_value!r}" if new_value else did_you_mean(str(value), map(str, choices))
        )
        raise ConfigError(f"{key} is {value!r}; {hint}")
    return value


def _validate_items(value: object, hints: tuple[TypeHint, ...], key: str) -> tuple:
    if not isinstance(value, (tuple, list)):
        raise ConfigError(f"{key} is {value!r} ({type(value).__name__}), must be a tuple")
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        raise ConfigError(f"{key} is {value!r}, must have {len(hints)} entries")
    return tuple(
        validate(v, h, f"{key}[{i}]") for i, (v, h) in enumerate(zip(value, hints, strict=True))
    )


def _exact(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _type_name(hint: TypeHint) -> str:
    name = hint.__name__ if isinstance(hint, type) else str(hint)
    return {int: "an integer", float: "a number", bool: "True or False", str: "text"}.get(
        hint, name
    )
