"""The text of a flag and the value of its setting: parsing by annotation, and types in words."""

import ast
import typing
from typing import Annotated, Any, Literal

from absl import flags as absl_flags

from settings.tree import coerce, format_value
from settings.types import OneOf, Range, TypeHint

TYPE_NAMES = {bool: "true | false", int: "integer", float: "number", str: "text"}


class SettingParser(absl_flags.ArgumentParser):
    """A parser for absl that converts text by the annotation of the setting."""

    def __init__(self, hint: TypeHint, key: str):
        self.hint, self.key = hint, key

    def parse(self, argument: str) -> object:
        """Returns the value that the text of a flag stands for."""
        return coerce(_parse_value(argument, self.hint), self.hint, self.key)


def _parse_value(text: str, hint: TypeHint) -> object:
    """The value that `text` stands for under `hint`; `coerce` refuses text that stands for none."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _parse_value(text, args[0])
    if origin is Literal:
        return next((choice for choice in args if format_value(choice) == text), text)
    if origin is tuple:
        return _parse_tuple(text, args)
    if hint is Any:
        value = _parse_literal({"true": "True", "false": "False"}.get(text, text))
        return value if isinstance(value, (int, float, str, tuple, list)) else text
    if hint is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if not text.isascii() and hint in (int, float):
        return text  # int and float read the digits of all scripts.
    try:
        return hint(text)
    except ValueError:
        return text


def _parse_tuple(text: str, hints: tuple[TypeHint, ...]) -> object:
    """The items of `a,b`, or of Python's `("a", "b")`, which allows commas in items."""
    if text[:1] in ("(", "[", "'", '"'):
        value = _parse_literal(text)
        return (value,) if isinstance(value, str) and value != text else value
    items = [item.strip() for item in text.removesuffix(",").split(",")] if text.strip() else []
    last = len(hints) - 1 - (hints[-1] is Ellipsis)
    return tuple(_parse_value(item, hints[min(i, last)]) for i, item in enumerate(items))


def _parse_literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def format_type(hint: TypeHint) -> str:
    """Returns the permitted values of a setting in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        for choice in (extra for extra in args[1:] if isinstance(extra, OneOf)):
            return " | ".join(choice.names)
        bounds = [str(extra) for extra in args[1:] if isinstance(extra, Range)]
        return " ".join([format_type(args[0]), *bounds])
    if origin is Literal:
        return " | ".join(map(format_value, args))
    if origin is tuple:
        return ",".join("..." if arg is Ellipsis else format_type(arg) for arg in args)
    return TYPE_NAMES.get(hint, "names of your choice, set in config files")
