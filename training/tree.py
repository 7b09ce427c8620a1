"""Settings as trees: frozen dataclasses for the run, a ConfigDict to edit, plain dicts for JSON.

`editable` opens settings to config files and flags, `frozen` closes them again. Both judge a value
by the annotation of its field, so that a mistake is answered where it stands. A settings class has
a default for every field. Dotted keys (`train.steps`) lack the `config.` of flags and messages.
"""

import dataclasses
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from ml_collections.config_dict import ConfigDict, FieldReference, RequiredValueError

from errors import ConfigError
from schema import annotations, fit, nearest

T = TypeVar("T")


class UnknownKey(ConfigError, AttributeError):
    """A name that is not declared; an AttributeError too, so that `hasattr` keeps its meaning."""


class Section(ConfigDict):
    """An editable section: takes what its annotation admits, and notes what it was given.

    `hint` is a settings class, or a Mapping: there the names are the user's, and it stays open.
    """

    def __init__(self, hint: Any, path: str):
        super().__init__(type_safe=False, sort_keys=False)  # `fitted` is stricter than type safety
        self.__setstate__({"_hint": hint, "_path": path, "_given": set()})

    def __setstate__(self, state: Mapping[str, Any]) -> None:  # of copies: nothing to judge again
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        hint, key = within(self._hint, name, self._path), f"{self._path}.{name}"
        if is_section(hint):
            raise ConfigError(f"{key} is a section, set its keys one by one: {key}.KEY = VALUE")
        if is_free(hint) or (hint is Any and is_tree(value)):
            value = _opened(value, hint, key)
        elif not isinstance(value, FieldReference):
            value = fitted(value, hint, key)
        super().__setitem__(name, value)
        self._given.add(name)

    def __getattr__(self, name: str) -> Any:
        if name not in self._fields and not name.startswith("__"):
            raise UnknownKey(unknown(name, self._fields, self._path))
        return super().__getattr__(name)

    def lock(self) -> ConfigDict:
        return super().lock() if is_section(self._hint) else self


def editable(settings: Any, path: str = "config") -> Section:
    """A locked and typed ConfigDict of `settings`; sections with free names stay open."""
    section = Section(type(settings), path)
    for name, hint in hints_of(type(settings)).items():
        value, key = getattr(settings, name), f"{path}.{name}"
        if is_section(hint):
            value = editable(value, key)
        elif is_free(hint):
            value = _opened(value, hint, key)
        ConfigDict.__setitem__(section, name, value)
    return section.lock()


def reopened(cls: type, tree: Mapping | ConfigDict) -> Section:
    """`tree` as what `editable(cls())` gives: itself if it is that, else its values on defaults."""
    if isinstance(tree, Section) and tree._hint is cls:
        return tree
    section = editable(cls())
    _fill(section, tree)
    return section


def given(section: Section, prefix: str = "") -> Iterator[str]:
    """Dotted keys of the declared fields that were assigned."""
    yield from (prefix + name for name in section._given)
    for name, value in section.items():
        if isinstance(value, Section) and is_section(value._hint):
            yield from given(value, f"{prefix}{name}.")


def frozen(cls: type[T], tree: Mapping | ConfigDict) -> T:
    """The settings in `tree`, with defaults for what it leaves out; ConfigError names the key."""
    return _changed(cls(), tree, "config")


def as_json(settings: Any) -> dict[str, Any]:
    """Strict JSON types: tuples become lists; `from_json` gives equal settings back."""
    return {name: _jsonable(value) for name, value in _members(settings)}


def from_json(cls: type[T], data: Any) -> T:
    """Settings from the dict that `as_json` made; anything else in it is a ConfigError."""
    return frozen(cls, _nested(data, "config"))


def leaves(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key, in the order of declaration."""
    flat: dict[str, Any] = {}
    for name, value in _members(settings):
        if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
            flat |= leaves(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def differences(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """(key, value in a, value in b) where they differ; None where one has no such key."""
    x, y = leaves(a), leaves(b)
    return [(k, x.get(k), y.get(k)) for k in dict.fromkeys((*x, *y)) if x.get(k) != y.get(k)]


def rows(settings: Any, provenance: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every setting, to print."""
    return [(key, shown(value), provenance[key]) for key, value in leaves(settings).items()]


def shown(value: Any) -> str:
    """`value` as one would type it behind `--config.key=`."""
    if isinstance(value, tuple):
        texts = [shown(item) for item in value]
        plain = texts and all(re.fullmatch(r"[^\s,'\"()\[\]]+", text) for text in texts)
        return ",".join(texts) if plain else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def fitted(value: Any, hint: Any, key: str) -> Any:
    """`value` by the rules of `schema.fit`, which knows no numpy, references and free sections."""
    value = _resolved(value, key)
    if is_free(hint) or (hint is Any and is_tree(value)):
        items = _items(_nested(value, key))
        inner = {k: fitted(v, within(hint, k, key), f"{key}.{k}") for k, v in items}
        return fit(inner, hint, key) if is_free(hint) else inner
    if hint is Any:
        return _free(value, key)
    if isinstance(value, (list, tuple)):
        value = tuple(_resolved(item, key) for item in value)
    return fit(value, hint, key)


def hints_of(cls: Any) -> dict[str, Any]:
    """The annotations of the fields of `cls`, in their order."""
    return {field.name: annotations(cls)[field.name] for field in dataclasses.fields(cls)}


def is_section(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def is_free(hint: Any) -> bool:
    """Whether the user chooses the names in a section of this annotation."""
    return hint is Mapping or typing.get_origin(hint) is Mapping


def is_tree(value: Any) -> bool:
    return isinstance(value, (ConfigDict, Mapping))


def within(hint: Any, name: str, path: str) -> Any:
    """The annotation of `name` in the section at `path`, whose own annotation is `hint`."""
    if not is_section(hint):
        if not re.fullmatch(r"\w[\w-]*", str(name)):
            raise ConfigError(f"{path} has the name {name!r}; use letters, digits, - and _")
        return (typing.get_args(hint) or (str, Any))[1]
    hints = hints_of(hint)
    if name not in hints:
        raise UnknownKey(unknown(name, hints, path))
    return hints[name]


def unknown(name: str, known: Iterable[str], path: str) -> str:
    """The message about a name that is not `known`."""
    name = str(name)
    key = name if name.isprintable() else repr(name)
    return f"unknown key {path}.{key}; {nearest(name, known) if known else 'the section is empty'}"


def _fill(section: Section, tree: Mapping | ConfigDict) -> None:
    for name, value in _items(tree):
        inner = section.get(name)
        if isinstance(inner, Section) and is_section(inner._hint):
            _fill(inner, _nested(value, inner._path))
        else:
            section[name] = value


def _opened(value: Any, hint: Any, key: str) -> Section:
    section = Section(hint if is_free(hint) else Mapping, key)
    for name, inner in _items(_nested(value, key)):
        section[name] = inner
    return section


def _changed(base: Any, tree: Mapping | ConfigDict, path: str) -> Any:
    new = {}
    for name, value in _items(tree):
        hint, key = within(type(base), name, path), f"{path}.{name}"
        if is_section(hint):
            new[name] = _changed(getattr(base, name), _nested(value, key), key)
        else:
            new[name] = fitted(value, hint, key)
    return dataclasses.replace(base, **new)


def _resolved(value: Any, key: str) -> Any:
    """The value behind a reference or a numpy scalar."""
    if isinstance(value, FieldReference):
        try:
            value = value.get()
        except RequiredValueError:
            value = None
        if value is None:
            raise ConfigError(f"{key} is left open by the config file; give it: --{key}=VALUE")
    return value.item() if isinstance(value, np.generic) else value


def _free(value: Any, key: str) -> Any:
    """`value` if JSON can hold it: all that is known of a value in a section with free names."""
    if isinstance(value, (list, tuple)):
        return tuple(_free(_resolved(item, key), key) for item in value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if type(value) not in (bool, int, float, str) or not finite:
        raise ConfigError(f"{key} is {value!r}, must be text, a finite number, True or False")
    return value


def _nested(value: Any, key: str) -> Any:
    if not is_tree(value):
        raise ConfigError(f"{key} is {value!r}, must be a section of named values")
    return value


def _items(tree: Any) -> Iterable[tuple[str, Any]]:
    """The items of a mapping; references stay references."""
    return tree.items(True) if isinstance(tree, ConfigDict) else tree.items()


def _members(settings: Any) -> list[tuple[str, Any]]:
    if isinstance(settings, Mapping):
        return list(settings.items())
    return [(f.name, getattr(settings, f.name)) for f in dataclasses.fields(settings)]


def _jsonable(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_jsonable(item) for item in value]
    return as_json(value) if isinstance(value, Mapping) or is_section(value) else value
