"""Reading what others wrote: limited in size and depth, no link followed, every value by its type.

A run folder may come from anywhere. What is wrong in it is a `DataError` that names the file and
the key, so that the board can say why a row is not there; nothing is executed.
"""

import contextlib
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import DataError
from training.files import SPECIAL, decode

WHOLE = 4 * 2**20  # bytes of a file that is one object
ROWS = 64 * 2**20  # bytes of a file of rows
DEEPEST = 24  # objects and lists inside each other
LARGEST = 1e40  # number that sums and squares still hold
LONGEST = 200  # characters of a text that is shown


def read(root: Path, *parts: str, limit: int = WHOLE) -> bytes | None:
    """The bytes of a regular file below `root`, None if there is none."""
    name, path = "/".join(parts) or root.name, root
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise DataError(f"{clean(name)} is or stands behind a link, which is not followed")
    try:  # a pipe must not make us wait
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{clean(name)} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise DataError(f"{clean(name)} is no regular file")
    with os.fdopen(file, "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise DataError(
            f"{clean(name)} has more than {limit} bytes, which is the most that is read"
        )
    return data


def parsed(data: bytes, name: str, beside: int = 0) -> "Fields":
    """The JSON object in `data`, in which so many objects stand beside each other."""
    try:
        value = decode(data.decode())
        if data.count(b"[") + data.count(b"{") - beside > DEEPEST:
            _shallow(value)
    except ValueError as error:
        raise DataError(f"{clean(name)} is damaged: {clean(str(error))}") from None
    return Fields(value, name)


def rows(data: bytes, name: str) -> list["Fields"]:
    """The objects of a file of one a line; a torn last line is left out."""
    *lines, torn = data.split(b"\n")
    try:
        found = _whole(lines, name)
    except DataError:  # to say which line it is
        found = [parsed(line, f"{name} line {number}") for number, line in enumerate(lines, 1)]
    with contextlib.suppress(DataError):
        found.append(parsed(torn, name))
    return found


def _whole(lines: list[bytes], name: str) -> list["Fields"]:
    """All lines at once, which is four times faster than one by one."""
    top = parsed(b'{"rows":[' + b",".join(lines) + b"]}", name, len(lines))
    found = top.objects("rows")
    if len(found) != len(lines):
        raise DataError(f"{name} is damaged: a line is not one object")
    return found


class Fields:
    """A JSON object; a value is asked for by its type, what is absent or null is blank."""

    def __init__(self, tree: Any, name: str):
        if not isinstance(tree, dict):
            raise DataError(f"{clean(name)} is {clean(repr(tree), 40)}, must be an object")
        self.tree: dict[str, Any] = tree
        self.name = name

    def section(self, key: str) -> "Fields":
        value = self.tree.get(key)
        return Fields({} if value is None else value, f"{self.name} {key}")

    def text(self, key: str, most: int = LONGEST) -> str:
        value = self.tree.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._wrong(key, "text")
        return clean(value, most)

    def flag(self, key: str) -> bool:
        value = self.tree.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return bool(value)

    def is_text(self, key: str) -> bool:
        """Whether it is text that stands for no number."""
        value = self.tree.get(key)
        return isinstance(value, str) and value not in SPECIAL

    def number(self, key: str) -> float | None:
        """May be infinite or not a number where the file says so in the form that JSON has."""
        value = self.tree.get(key)
        if value is None or type(value) is float and abs(value) <= LARGEST:
            return value
        if isinstance(value, str) and value in SPECIAL:
            return float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(key, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not abs(number) <= LARGEST:
            raise self._wrong(key, f"a finite number up to {LARGEST:g}")
        return number

    def amount(self, key: str) -> float | None:
        """A finite number that is not negative."""
        plain = self.tree.get(key)
        if type(plain) is float and 0 <= plain <= LARGEST:  # most are: a board asks for millions
            return plain
        value = self.number(key)
        if value is not None and not 0 <= value < math.inf:
            raise self._wrong(key, "finite and not negative")
        return value

    def count(self, key: str) -> int | None:
        plain = self.tree.get(key)
        if type(plain) is int and 0 <= plain < 2**53:
            return plain
        value = self.amount(key)
        if value is not None and value != int(value):
            raise self._wrong(key, "a whole number")
        return None if value is None else int(value)

    def objects(self, key: str) -> list["Fields"]:
        return [Fields(x, f"{self.name} {key}[{i}]") for i, x in enumerate(self._list(key))]

    def texts(self, key: str, most: int = LONGEST) -> list[str]:
        items = self._list(key)
        if not all(isinstance(item, str) for item in items):
            raise self._wrong(key, "a list of texts")
        return [clean(item, most) for item in items]

    def counts(self, key: str) -> list[int]:
        items = self._list(key)
        if not all(type(item) is int and 0 <= item < 2**53 for item in items):
            raise self._wrong(key, "a list of whole numbers")
        return items

    def pairs(self, key: str, most: int = LONGEST) -> list[tuple[str, str]]:
        items = self._list(key)
        for item in items:
            if not isinstance(item, list) or list(map(type, item)) != [str, str]:
                raise self._wrong(key, "a list of pairs of texts")
        return [(clean(a, most), clean(b, most)) for a, b in items]

    def _list(self, key: str) -> list[Any]:
        value = self.tree.get(key)
        if value is not None and not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value or []

    def _wrong(self, key: str, rule: str) -> DataError:
        value = clean(repr(self.tree[key]), 40)
        return DataError(f"{clean(f'{self.name} {key}')} is {value}, must be {rule}")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Values as text by dotted key; a list is one value."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[clean(prefix + key)] = clean(shown(value))
    return flat


def shown(value: Any) -> str:
    """A setting as one would type it."""
    if isinstance(value, list):
        return ",".join(map(shown, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def clean(text: str, most: int = LONGEST) -> str:
    """`text` in one line of at most `most` characters, none of which a screen would obey."""
    if len(text) <= most and text.isprintable():
        return text
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _shallow(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner = [x.values() if isinstance(x, dict) else x for x in level]
        level = [y for items in inner for y in items if isinstance(y, (dict, list))]
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST} deep")
