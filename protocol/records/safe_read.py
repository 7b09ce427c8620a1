"""Reads files that others wrote: limited in size and depth, with types checked, following no link.

A run folder may come from anywhere. An error in it is a `DataError` that names the file and the
key, so that the board can report why a row is missing. Nothing that is read is executed.
"""

import contextlib
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from errors import DataError
from training.run.strict_json import NONFINITE_STRINGS, decode_json

MAX_JSON_BYTES = 4 * 2**20  # Size of a file that is one object.
MAX_JSONL_BYTES = 64 * 2**20  # Size of a file with one object per line.
MAX_DEPTH = 24  # Nesting of objects and lists.
MAX_NUMBER = 1e40  # Sums and squares of such numbers do not overflow.
MAX_TEXT = 200  # Characters of a text that is shown.


def read_file(root: Path, *parts: str, max_bytes: int = MAX_JSON_BYTES) -> bytes | None:
    """Returns the bytes of a regular file below `root`; None if it does not exist.

    Raises:
        DataError: if the file is behind a link, is not regular, is too large, or cannot be read.
    """
    name, path = "/".join(parts) or root.name, root
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise DataError(f"{sanitize(name)} is a link or behind one; links are not followed")
    try:  # Without O_NONBLOCK, opening a pipe would wait.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{sanitize(name)} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise DataError(f"{sanitize(name)} is not a regular file")
    with os.fdopen(file, "rb") as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(
            f"{sanitize(name)} has more than {max_bytes} bytes; larger files are not read"
        )
    return data


def parse_object(data: bytes, name: str, n_siblings: int = 0) -> "CheckedFields":
    """Returns the JSON object in `data`.

    Args:
        data: the file.
        name: the name of the file for errors.
        n_siblings: objects that are beside each other, not nested; only speed depends on it.

    Raises:
        DataError: if it is not valid JSON, is nested too deep, or is not an object.
    """
    try:
        value = decode_json(data.decode())
        if data.count(b"[") + data.count(b"{") - n_siblings > MAX_DEPTH:
            _check_depth(value)
    except ValueError as error:
        raise DataError(f"{sanitize(name)} is damaged: {sanitize(str(error))}") from None
    return CheckedFields(value, name)


def parse_jsonl(data: bytes, name: str) -> list["CheckedFields"]:
    """Returns the objects of a file with one object per line; a torn last line is ignored."""
    *lines, torn = data.split(b"\n")
    try:
        rows = _parse_lines(lines, name)
    except DataError:  # Parse line by line, so that the error names the line.
        rows = [parse_object(line, f"{name} line {number}") for number, line in enumerate(lines, 1)]
    with contextlib.suppress(DataError):
        rows.append(parse_object(torn, name))
    return rows


def _parse_lines(lines: list[bytes], name: str) -> list["CheckedFields"]:
    """Parses all lines at once, which is four times faster than one by one.

    Raises:
        DataError: if a line is not one object.
    """
    top = parse_object(b'{"rows":[' + b",".join(lines) + b"]}", name, len(lines))
    rows = top.objects("rows")
    if len(rows) != len(lines):
        raise DataError(f"{name} is damaged: a line is not one object")
    return rows


class CheckedFields:
    """A JSON object whose values are read by type; a value that is absent or null is blank.

    Every method raises a DataError if the value has another type, or is out of its range.
    """

    def __init__(self, tree: object, name: str):
        if not isinstance(tree, dict):
            raise DataError(f"{sanitize(name)} is {sanitize(repr(tree), 40)}, must be an object")
        self.tree: dict[str, object] = tree
        self.name = name

    def section(self, key: str) -> "CheckedFields":
        """Returns the object under `key`; an absent one is empty."""
        value = self.tree.get(key)
        return CheckedFields({} if value is None else value, f"{self.name} {key}")

    def text(self, key: str, max_length: int = MAX_TEXT) -> str:
        """Returns the text under `key` as one printable line of at most `max_length` characters."""
        value = self.tree.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._type_error(key, "text")
        return sanitize(value, max_length)

    def boolean(self, key: str) -> bool:
        """Returns the boolean under `key`."""
        value = self.tree.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._type_error(key, "true or false")
        return bool(value)

    def is_text(self, key: str) -> bool:
        """Returns whether the value is a text that does not represent a number."""
        value = self.tree.get(key)
        return isinstance(value, str) and value not in NONFINITE_STRINGS

    def number(self, key: str) -> float | None:
        """Returns the number under `key`; NaN and infinities are written as texts in JSON."""
        value = self.tree.get(key)
        if value is None or type(value) is float and abs(value) <= MAX_NUMBER:
            return value
        if isinstance(value, str) and value in NONFINITE_STRINGS:
            return float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._type_error(key, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not abs(number) <= MAX_NUMBER:
            raise self._type_error(key, f"a finite number up to {MAX_NUMBER:g}")
        return number

    def nonnegative(self, key: str) -> float | None:
        """Returns the number under `key`, which is finite and 0 or more."""
        plain = self.tree.get(key)
        # A shortcut for the common case, because a board reads millions of numbers.
        if type(plain) is float and 0 <= plain <= MAX_NUMBER:
            return plain
        value = self.number(key)
        if value is not None and not 0 <= value < math.inf:
            raise self._type_error(key, "finite and not negative")
        return value

    def count(self, key: str) -> int | None:
        """Returns the whole number under `key`, which is 0 or more."""
        plain = self.tree.get(key)
        if type(plain) is int and 0 <= plain < 2**53:
            return plain
        value = self.nonnegative(key)
        if value is not None and value != int(value):
            raise self._type_error(key, "a whole number")
        return None if value is None else int(value)

    def objects(self, key: str) -> list["CheckedFields"]:
        """Returns the list of objects under `key`."""
        return [CheckedFields(x, f"{self.name} {key}[{i}]") for i, x in enumerate(self._list(key))]

    def texts(self, key: str, max_length: int = MAX_TEXT) -> list[str]:
        """Returns the list of texts under `key`."""
        items = self._list(key)
        texts = [item for item in items if isinstance(item, str)]
        if len(texts) < len(items):
            raise self._type_error(key, "a list of texts")
        return [sanitize(text, max_length) for text in texts]

    def counts(self, key: str) -> list[int]:
        """Returns the list of whole numbers under `key`, which are 0 or more."""
        items = self._list(key)
        counts = [item for item in items if type(item) is int and 0 <= item < 2**53]
        if len(counts) < len(items):
            raise self._type_error(key, "a list of whole numbers")
        return counts

    def numbers(self, key: str) -> list[float | None]:
        """Returns the list of numbers under `key`; null is None."""
        items = self._list(key)
        fields = [CheckedFields({"value": item}, f"{self.name} {key}") for item in items]
        return [item.number("value") for item in fields]

    def text_pairs(self, key: str, max_length: int = MAX_TEXT) -> list[tuple[str, str]]:
        """Returns the list of pairs of texts under `key`."""
        pairs: list[tuple[str, str]] = []
        for item in self._list(key):
            if not isinstance(item, list) or list(map(type, item)) != [str, str]:
                raise self._type_error(key, "a list of pairs of texts")
            pairs.append((sanitize(item[0], max_length), sanitize(item[1], max_length)))
        return pairs

    def _list(self, key: str) -> list[object]:
        value = self.tree.get(key)
        if value is not None and not isinstance(value, list):
            raise self._type_error(key, "a list")
        return value or []

    def _type_error(self, key: str, rule: str) -> DataError:
        value = sanitize(repr(self.tree[key]), 40)
        return DataError(f"{sanitize(f'{self.name} {key}')} is {value}, must be {rule}")


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Returns values as text by dotted key; a list is one value."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[sanitize(prefix + key)] = sanitize(format_value(value))
    return flat


def format_value(value: object) -> str:
    """Returns a setting as it is written in a flag."""
    if isinstance(value, list):
        return ",".join(map(format_value, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def sanitize(text: str, max_length: int = MAX_TEXT) -> str:
    """Returns `text` as one line without control characters, at most `max_length` long."""
    if len(text) <= max_length and text.isprintable():
        return text
    text = "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: max_length + 1]
    )
    return text if len(text) <= max_length else text[: max_length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _check_depth(value: object) -> None:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        inner = [x.values() if isinstance(x, dict) else x for x in level]
        level = [y for items in inner for y in items if isinstance(y, (dict, list))]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} deep")
