"""Changes of settings by dotted key: `with_changes(settings, {"model.attention.heads": 8})`.

Studies, tuning trials, capability probes, variants of a part and the configs of families state what
differs from other settings in this form. Config files assign to a ConfigDict instead.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TypeVar

from errors import ConfigError
from settings.renames import find_new_name
from settings.types import field_types, unknown_key_hint, validate

T = TypeVar("T")


def with_changes(settings: T, changes: Mapping[str, object], path: str = "config") -> T:
    """Returns settings with other values under the dotted keys of `changes`.

    The value of a section is a mapping of changes inside it. Where the user chooses the names of a
    section, its value replaces all names, and a longer key changes only what it names. `path` is
    the dotted key of `settings`, for messages.

    Raises:
        ConfigError: if a key is unknown or contradicts another, or a value is not permitted.
    """
    hints = field_types(type(settings))  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for name, inner in _by_first_name(changes, path).items():
        key = f"{path}.{name}"
        if name not in hints:
            raise ConfigError(f"unknown key {key}; {_unknown_key_hint(key, inner, hints)}")
        current = getattr(settings, name)
        if dataclasses.is_dataclass(current):
            section = inner.get("", inner)
            if not isinstance(section, Mapping):
                raise ConfigError(f"{key} is {section!r}, must be a section of named values")
            values[name] = with_changes(current, section, key)
        elif "" in inner:
            values[name] = validate(inner[""], hints[name], key)
        elif isinstance(current, Mapping):
            values[name] = validate(_merge(current, inner, key), hints[name], key)
        else:
            raise ConfigError(f"unknown key {key}.{next(iter(inner))}; {key} is not a section")
    return dataclasses.replace(settings, **values)  # type: ignore[type-var]


def _by_first_name(changes: Mapping[str, object], path: str) -> dict[str, dict[str, object]]:
    """Returns the changes by the first name of their keys, then by what follows it, if anything.

    Raises:
        ConfigError: if a key is that of a section which another key changes.
    """
    groups: dict[str, dict[str, object]] = {}
    for key, value in changes.items():
        name, _, inner_key = key.partition(".")
        groups.setdefault(name, {})[inner_key] = value
    for name, inner in groups.items():
        if "" in inner and len(inner) > 1:
            other = next(filter(None, inner))
            raise ConfigError(
                f"changes name both {path}.{name} and {path}.{name}.{other}; remove one of them"
            )
    return groups


def _merge(current: Mapping, changes: Mapping[str, object], path: str) -> dict[str, object]:
    """Returns a section whose names the user chooses, with changes by dotted key."""
    merged = dict(current)
    for name, inner in _by_first_name(changes, path).items():
        old = merged.get(name, {})
        base = old if isinstance(old, Mapping) else {}
        merged[name] = inner[""] if "" in inner else _merge(base, inner, f"{path}.{name}")
    return merged


def _unknown_key_hint(key: str, inner: Iterable[str], choices: Iterable[str]) -> str:
    """Returns the new name of a renamed setting, or else the nearest of `choices`.

    The first name of `key` is that of the settings, which the table of renames does not have.
    """
    for inner_key in inner:
        full_key = f"{key}.{inner_key}".removesuffix(".")
        for name in (full_key, full_key.partition(".")[2]):
            if new_name := find_new_name("settings", name):
                return f"it is now {new_name!r}"
    return unknown_key_hint(key, choices)
