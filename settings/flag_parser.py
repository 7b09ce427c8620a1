"""Parser of the flags of a command that has no settings, with the project's errors."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from errors import ConfigError
from settings.descriptions import field_descriptions
from settings.flag_values import SettingParser, format_type
from settings.renames import flag_hint
from settings.types import NonNegativeInt, config_fields, field_types
from storage.paths import expand_user

T = TypeVar("T")

MAX_MESSAGE = 400  # Characters of a message of the parser, which may hold a long value.


class FlagParser(argparse.ArgumentParser):
    """A parser that raises the project's errors."""

    arguments: Sequence[str] = ()  # The arguments that are parsed, for the messages about them.

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parses arguments as its base class does, but refuses empty paths."""
        self.register("type", Path, _named_path)
        self.arguments = tuple(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Reports a wrong flag.

        Raises:
            ConfigError: always.
        """
        unknown = self._unknown_flag()
        if "arguments are required" in message and unknown:
            message = f"unrecognized arguments: {unknown}"  # It may be a required one, misspelled.
        hint = flag_hint(message.split()) or self._nearest_flag(unknown)
        text = " ".join(message.split())
        text = text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."
        raise ConfigError(f"{text}; {hint}")

    def _names(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings]

    def _unknown_flag(self) -> str:
        """Returns the first argument that is an unknown flag, without its value; "" if none is."""
        flags = (word.partition("=")[0] for word in self.arguments if word.startswith("--"))
        return next((flag for flag in flags if flag not in ("--", *self._names())), "")

    def _nearest_flag(self, unknown: str) -> str:
        """Returns a hint with the flag that is closest to an unknown one."""
        near = difflib.get_close_matches(unknown, self._names(), 1)
        return f"did you mean {near[0]!r}?" if near else "--help lists the flags"


def _named_path(text: str) -> Path:
    """Returns a path with ~ replaced; an empty one would be the current folder.

    Raises:
        argparse.ArgumentTypeError: if it is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty, must name a file or a folder")
    return expand_user(text, "a flag")


def make_parser(prog: str, description: str | None) -> FlagParser:
    """Returns a parser that prints the lines of `description` as they are."""
    return FlagParser(
        prog,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """Adds a flag for each field of a config, with its comment as the meaning and its default."""
    meanings, hints = field_descriptions(cls), field_types(cls)
    for field in config_fields(cls):
        text = meanings[field.name].replace("%", "%%")
        parser.add_argument(
            f"--{field.name}",
            type=SettingParser(hints[field.name], f"--{field.name}").parse,
            default=field.default,
            metavar=format_type(hints[field.name]).split()[0].upper(),
            help=f"{text} (default: %(default)s)",
        )


def add_change_flags(parser: argparse.ArgumentParser, cls: type, prefix: str) -> None:
    """Adds a flag `--PREFIX.NAME` for each field of a section of settings, which changes it."""
    meanings, hints = field_descriptions(cls), field_types(cls)
    for field in config_fields(cls):
        flag = f"--{prefix}.{field.name}"
        parser.add_argument(
            flag,
            type=SettingParser(hints[field.name], flag).parse,
            metavar=format_type(hints[field.name]).split()[0].upper(),
            help=meanings[field.name].replace("%", "%%"),
        )


def changes_from_flags(args: argparse.Namespace, prefix: str) -> dict[str, object]:
    """Returns the values of the flags of `add_change_flags` that were given, by full key."""
    return {
        key: value
        for key, value in vars(args).items()
        if key.startswith(f"{prefix}.") and value is not None
    }


def config_from_flags(cls: type[T], args: argparse.Namespace) -> T:
    """Returns the config whose fields are flags of `add_config_flags`."""
    return cls(**{field.name: vars(args)[field.name] for field in config_fields(cls)})


def count_parser(flag: str) -> Callable[[str], object]:
    """Returns the function that parses the value of a flag that is an integer of 0 or more."""
    return SettingParser(NonNegativeInt, flag).parse


def name_list(text: str) -> tuple[str, ...]:
    """Returns the names in a text that separates them by commas."""
    return tuple(filter(None, (name.strip() for name in text.split(","))))
