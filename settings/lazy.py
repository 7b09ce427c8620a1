"""Tables of parts by name that import a part when it is read, and not before.

A command then loads the code that it runs. A table lists "module:NAME" in plain sight; a test
imports all of them.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def import_object(path: str) -> Any:
    """Returns the object that `path` names as "module:NAME", and imports its module."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class LazyTable(Mapping[str, T]):
    """A read-only table of objects by name, each imported when it is read."""

    def __init__(self, paths: Mapping[str, str]):
        self.paths = paths  # "module:NAME" by name

    def __getitem__(self, name: str) -> T:
        value: T = import_object(self.paths[name])
        return value

    def __contains__(self, name: object) -> bool:
        return name in self.paths

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)
