"""Settings as trees: frozen dataclasses for the run, a ConfigDict to edit, plain dicts for JSON.

`to_config_dict` makes settings editable for config files and flags, `freeze` makes them immutable
again. Both check each value against the annotation of its field, so that an error names the line
that sets it. A settings class has a default for every field. Dotted keys (`train.steps`) lack the
`config.` of flags and messages.
"""

import dataclasses
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeGuard, TypeVar

import numpy as np
from ml_collections.config_dict import ConfigDict, FieldReference, RequiredValueError

from errors import ConfigError
from settings.json_types import JsonObject
from settings.types import TypeHint, config_fields, field_types, unknown_key_hint, validate

MappingLike: TypeAlias = Mapping[str, object] | ConfigDict
T = TypeVar("T")


class UnknownKeyError(ConfigError, AttributeError):
    """A name that is not declared; it is also an AttributeError, which `hasattr` expects."""


class EditableSection(ConfigDict):
    """An editable section that accepts permitted values only, and records which keys were assigned.

    `hint` is a settings class, or a Mapping, whose names the user chooses; then it stays open.
    """

    def __init__(self, hint: TypeHint, path: str):
        super().__init__(type_safe=False, sort_keys=False)  # `coerce` is stricter than type safety
        self.__setstate__({"_hint": hint, "_path": path, "_assigned": set()})

    def __setstate__(self, state: Mapping[str, object]) -> None:  # copies need no second check
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def __setitem__(self, name: str, value: object) -> None:
        hint, key = child_type(self._hint, name, self._path), f"{self._path}.{name}"
        if is_section(hint):
            raise ConfigError(f"{key} is a section, set its keys one by one: {key}.KEY = VALUE")
        if is_open_section(hint) or (hint is Any and is_mapping(value)):
            value = _open_section(value, hint, key)
        elif not isinstance(value, FieldReference):
            value = coerce(value, hint, key)
        super().__setitem__(name, value)
        self._assigned.add(name)

    def __getattr__(self, name: str) -> Any:
        if name not in self._fields and not name.startswith("__"):
            raise UnknownKeyError(unknown_key_message(name, self._fields, self._path))
        return super().__getattr__(name)

    def lock(self) -> ConfigDict:
        """Locks the names of the section, unless the user chooses them."""
        return super().lock() if is_section(self._hint) else self


def to_config_dict(settings: object, path: str = "config") -> EditableSection:
    """Returns a locked, typed ConfigDict of settings; sections whose names are free stay open."""
    cls: type = type(settings)
    section = EditableSection(cls, path)
    for name, hint in field_types(cls).items():
        value, key = getattr(settings, name), f"{path}.{name}"
        if is_section(hint):
            value = to_config_dict(value, key)
        elif is_open_section(hint):
            value = _open_section(value, hint, key)
        ConfigDict.__setitem__(section, name, value)
    return section.lock()


def fill_defaults(cls: type, tree: MappingLike) -> EditableSection:
    """Returns `tree` as an editable section of `cls`, with defaults for missing values.

    A tree that is such a section is returned unchanged.

    Raises:
        ConfigError: if a key is unknown or a value is not permitted.
    """
    if isinstance(tree, EditableSection) and tree._hint is cls:
        return tree
    section = to_config_dict(cls())
    _assign_all(section, tree)
    return section


def assigned_keys(section: EditableSection, prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of the declared fields that were assigned."""
    yield from (prefix + name for name in section._assigned)
    for name, value in section.items():
        if isinstance(value, EditableSection) and is_section(value._hint):
            yield from assigned_keys(value, f"{prefix}{name}.")


def freeze(cls: type[T], tree: MappingLike) -> T:
    """Returns the settings in `tree`, with defaults for missing values.

    Raises:
        ConfigError: if a key is unknown or a value is not permitted; the message names the key.
    """
    return _replace_nested(cls(), tree, "config")


def as_json(settings: object) -> JsonObject:
    """Returns settings in strict JSON types, tuples as lists; `from_json` inverts this."""
    return {name: _to_json_value(value) for name, value in _field_items(settings)}


def from_json(cls: type[T], data: object) -> T:
    """Returns the settings in a dict that `as_json` returned.

    Raises:
        ConfigError: if a key is unknown or a value is not permitted.
    """
    return freeze(cls, _check_mapping(data, "config"))


def flatten(settings: object, prefix: str = "") -> JsonObject:
    """Returns the values by dotted key, in the order of declaration."""
    flat: JsonObject = {}
    for name, value in _field_items(settings):
        if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def differences(a: object, b: object) -> list[tuple[str, object, object]]:
    """Returns (key, value in a, value in b) where they differ; None stands for a missing key."""
    x, y = flatten(a), flatten(b)
    return [(k, x.get(k), y.get(k)) for k in dict.fromkeys((*x, *y)) if x.get(k) != y.get(k)]


def setting_rows(settings: object, provenance: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Returns (key, value, origin) of each setting as text."""
    return [(key, format_value(value), provenance[key]) for key, value in flatten(settings).items()]


def format_value(value: object) -> str:
    """Returns a value in the syntax of a flag, the text behind `--config.key=`."""
    if isinstance(value, tuple):
        texts = [format_value(item) for item in value]
        plain = texts and all(re.fullmatch(r"[^\s,'\"()\[\]]+", text) for text in texts)
        return ",".join(texts) if plain else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def coerce(value: object, hint: TypeHint, key: str) -> object:
    """Returns `value` as `types.validate` does, and resolves numpy scalars and references first.

    It also accepts sections whose names the user chooses, and any JSON value under the hint Any.

    Raises:
        ConfigError: if the value is not permitted; the message names `key`.
    """
    value = _resolve(value, key)
    if is_open_section(hint) or (hint is Any and is_mapping(value)):
        items = _items(_check_mapping(value, key))
        inner = {k: coerce(v, child_type(hint, k, key), f"{key}.{k}") for k, v in items}
        return validate(inner, hint, key) if is_open_section(hint) else inner
    if hint is Any:
        return _check_json_value(value, key)
    if isinstance(value, (list, tuple)):
        value = tuple(_resolve(item, key) for item in value)
    return validate(value, hint, key)


def is_section(hint: TypeHint) -> bool:
    """Returns whether an annotation is a settings class."""
    return dataclasses.is_dataclass(hint)


def is_open_section(hint: TypeHint) -> bool:
    """Returns whether the user chooses the names in a section of this annotation."""
    return hint is Mapping or typing.get_origin(hint) is Mapping


def is_mapping(value: object) -> TypeGuard[MappingLike]:
    """Returns whether a value is a mapping; a ConfigDict counts as one."""
    return isinstance(value, (ConfigDict, Mapping))


def child_type(hint: TypeHint, name: str, path: str) -> TypeHint:
    """Returns the annotation of `name` in the section at `path`, whose annotation is `hint`.

    Raises:
        ConfigError: if a name that the user chose has a character that is not permitted.
        UnknownKeyError: if the settings class has no such field.
    """
    if not is_section(hint):
        if not re.fullmatch(r"\w[\w-]*", str(name)):
            raise ConfigError(f"{path} has the name {name!r}; use letters, digits, - and _")
        return (typing.get_args(hint) or (str, Any))[1]
    hints = field_types(hint)
    if name not in hints:
        raise UnknownKeyError(unknown_key_message(name, hints, path))
    return hints[name]


def unknown_key_message(name: str, choices: Iterable[str], path: str) -> str:
    """Returns the message about a name that is not one of `choices`."""
    name = str(name)
    key = name if name.isprintable() else repr(name)
    hint = unknown_key_hint(f"{path}.{name}", choices) if choices else "the section is empty"
    return f"unknown key {path}.{key}; {hint}"


def _assign_all(section: EditableSection, tree: MappingLike) -> None:
    for name, value in _items(tree):
        inner = section.get(name)
        if isinstance(inner, EditableSection) and is_section(inner._hint):
            _assign_all(inner, _check_mapping(value, inner._path))
        else:
            section[name] = value


def _open_section(value: object, hint: TypeHint, key: str) -> EditableSection:
    section = EditableSection(hint if is_open_section(hint) else Mapping, key)
    for name, inner in _items(_check_mapping(value, key)):
        section[name] = inner
    return section


def _replace_nested(base: T, tree: MappingLike, path: str) -> T:
    new = {}
    for name, value in _items(tree):
        hint, key = child_type(type(base), name, path), f"{path}.{name}"
        if is_section(hint):
            new[name] = _replace_nested(getattr(base, name), _check_mapping(value, key), key)
        else:
            new[name] = coerce(value, hint, key)
    return dataclasses.replace(base, **new)  # type: ignore[type-var]


def _resolve(value: object, key: str) -> object:
    """Returns the value behind a reference or a numpy scalar.

    Raises:
        ConfigError: if the config file requires a value that is not set.
    """
    if isinstance(value, FieldReference):
        try:
            value = value.get()
        except RequiredValueError:
            value = None
        if value is None:
            raise ConfigError(f"{key} has no value in the config file; set it: --{key}=VALUE")
    return value.item() if isinstance(value, np.generic) else value


def _check_json_value(value: object, key: str) -> object:
    """Checks that JSON can hold a value; sections with names of the user have no other rule.

    Raises:
        ConfigError: if it is not text, a finite number, a bool or a sequence of these.
    """
    if isinstance(value, (list, tuple)):
        return tuple(_check_json_value(_resolve(item, key), key) for item in value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if type(value) not in (bool, int, float, str) or not finite:
        raise ConfigError(f"{key} is {value!r}, must be text, a finite number, True or False")
    return value


def _check_mapping(value: object, key: str) -> MappingLike:
    if not is_mapping(value):
        raise ConfigError(f"{key} is {value!r}, must be a section of named values")
    return value


def _items(tree: MappingLike) -> Iterable[tuple[str, object]]:
    """The items of a mapping; references stay references."""
    return tree.items(True) if isinstance(tree, ConfigDict) else tree.items()


def _field_items(settings: object) -> list[tuple[str, object]]:
    if isinstance(settings, Mapping):
        return list(settings.items())
    return [(f.name, getattr(settings, f.name)) for f in config_fields(settings)]


def _to_json_value(value: object) -> object:
    if isinstance(value, tuple):
        return [_to_json_value(item) for item in value]
    return as_json(value) if isinstance(value, Mapping) or is_section(value) else value
