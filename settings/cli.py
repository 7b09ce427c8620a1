"""The command line: `--config=file.py:size`, `--config.section.key=value`, a command's own flags.

    settings, provenance, flags = parse_args(sys.argv[1:], Settings, define_flags)

A config file is Python and is executed with the rights of its user: run only files that you trust.
`--config=run.json` is the safe form for anything else: it reads settings and executes nothing.

The syntax is that of `ml_collections.config_flags`, which is not used because it accepts overrides
only after a file, reports an unknown key with a traceback, executes a second file inside the module
of the first (a file without `get_config` gets the earlier one), and may execute stale bytecode of a
file that was just rewritten.
"""

import difflib
import inspect
import json
import os
import re
import runpy
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from absl import flags as absl_flags
from ml_collections.config_dict import ConfigDict

from errors import CheckpointError, ConfigError, IsoflopError
from settings import run_json
from settings.descriptions import field_descriptions
from settings.flag_values import SettingParser, format_type
from settings.json_types import JsonObject
from settings.renames import find_new_name, flag_hint, import_hint
from settings.tree import (
    EditableSection,
    UnknownKeyError,
    assigned_keys,
    child_type,
    fill_defaults,
    flatten,
    format_value,
    freeze,
    is_open_section,
    is_section,
    to_config_dict,
    unknown_key_message,
)
from settings.types import TypeHint, field_types

T = TypeVar("T")
MAX_RUN_JSON_BYTES = 2**26


class CliArgs(NamedTuple, Generic[T]):
    """A parsed command line: the settings, their origins, and the command's own flags."""

    settings: T
    provenance: dict[str, str]  # "default", "file" or "flag" by dotted key
    flags: absl_flags.FlagValues


def parse_args(
    argv: Sequence[str],
    cls: type[T],
    define_flags: Callable[[absl_flags.FlagValues], None] | None = None,
    *,
    description: str = "",
) -> CliArgs[T]:
    """Parses `argv`, which starts after the program's name.

    `define_flags` defines the command's own flags (`flag_values=`). They exist in this call alone,
    so that a process can parse several command lines. `--help` prints `description`, flags and
    settings, and exits.

    Raises:
        ConfigError: if a flag, a key or a value is not permitted, or a file cannot be read.
        SystemExit: after `--help`.
    """
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string(
        "config",
        None,
        "Settings to start from: FILE.py, FILE.py:SIZE, or the run.json of a run; without it, the "
        "default settings are used.",
        flag_values=values,
    )
    if define_flags:
        define_flags(values)
    if asks_for_help(argv):
        print(format_help(cls, values, description))
        raise SystemExit(0)
    keys = _parse_flags(argv, cls, values)
    tree = to_config_dict(cls()) if values.config is None else load_config(values.config, cls)
    for key in keys:
        _assign(tree, key, values[f"config.{key}"].value)
    settings = freeze(cls, tree)
    edited, defaults = set(assigned_keys(tree)), flatten(cls())
    provenance = {
        key: "file" if key in edited or defaults.get(key) != value else "default"
        for key, value in flatten(settings).items()
    }
    return CliArgs(settings, provenance | dict.fromkeys(keys, "flag"), values)


def load_config(spec: str, cls: type) -> EditableSection:
    """Returns the settings in `FILE.py`, `FILE.py:SIZE` or `run.json`, still editable by flags.

    Raises:
        ConfigError: if the file does not exist, raises an error, or returns no settings.
    """
    path, colon, size = spec.partition(":")
    file, sizes = Path(path), (size,) if colon else ()
    if not os.path.isfile(file):
        raise ConfigError(_missing_file_message(path))
    if file.suffix not in (".py", ".json"):
        raise ConfigError(f"--config={spec}: must be a .py file or the run.json of a run")
    if file.suffix == ".json":
        if sizes:
            raise ConfigError(f"--config={spec}: a run.json takes no size; leave out ':{size}'")
        return call_for_file(
            file, fill_defaults, cls, call_for_file(file, _read_run_settings, file)
        )
    make = call_for_file(file, runpy.run_path, str(file)).get("get_config")
    if not callable(make):
        raise ConfigError(f"{file} has no get_config(); define it, returning the settings")
    try:
        inspect.signature(make).bind(*sizes)
    except ValueError:
        pass  # inspect has no signature for some classes; the call itself tells
    except TypeError:
        rule = "takes no size" if sizes else f"needs a size: --config={path}:SIZE"
        raise ConfigError(f"--config={spec}: get_config() {rule}") from None
    tree = call_for_file(file, make, *sizes)
    if not isinstance(tree, (ConfigDict, Mapping)):
        raise ConfigError(f"get_config() of {file} returned {tree!r}; end it with `return c`")
    return call_for_file(file, fill_defaults, cls, tree)


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether a command line has `--help` or `-h`."""
    return not {"-h", "-help", "--help"}.isdisjoint(argv)


def format_help(cls: type, flag_values: absl_flags.FlagValues, description: str = "") -> str:
    """Returns the text of `--help`."""
    lines = [description.strip(), ""] if description else []
    lines += [*format_flags(flag_values), "", "Settings, with their defaults:"]
    defaults = flatten(cls())
    for key, hint, description in _iter_settings(cls):
        value = ".NAME.KEY=VALUE" if is_open_section(hint) else "=" + format_value(defaults[key])
        lines.append(f"  --config.{key + value:<44} {description} ({format_type(hint)})")
    return "\n".join(lines)


def format_flags(flag_values: absl_flags.FlagValues) -> list[str]:
    """Returns the lines of `--help` about a command's own flags."""
    lines = ["Flags:"]
    for flag in map(flag_values.__getitem__, flag_values):
        default = f" (default: {flag.default})" if flag.default else ""
        lines.append(f"  --{flag.name:<24} {_one_line(flag.help)}{default}")
    return lines


def _parse_flags(argv: Sequence[str], cls: type, flag_values: absl_flags.FlagValues) -> list[str]:
    """Parses `argv` into `flag_values`, and returns the dotted keys of settings that it sets.

    Raises:
        ConfigError: if a flag is unknown, a value is not permitted, or an argument is no flag.
    """
    try:
        arguments = flag_values.read_flags_from_files(list(argv), force_gnu=False)
        matches = (re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in arguments)
        keys = list(dict.fromkeys(match[1] for match in matches if match))
        for key in keys:
            hint, name = _setting_type(cls, key), f"config.{key}"
            flag = absl_flags.Flag(
                SettingParser(hint, name), None, name, None, "", boolean=hint is bool
            )
            absl_flags.DEFINE_flag(flag, flag_values)
        stray = flag_values(["", *arguments])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        unknown = _one_line("--" + error.flagname)
        if renamed := flag_hint(argv):
            raise ConfigError(f"unknown flag {unknown}; {renamed}") from None
        names = [*flag_values, *(f"config.{key}" for key in flatten(cls()))]
        near = difflib.get_close_matches(error.flagname, names, 1)
        hint = f"did you mean '--{near[0]}'?" if near else "--help lists all"
        raise ConfigError(f"unknown flag {unknown}; {hint}") from None
    except (absl_flags.Error, ValueError) as error:
        renamed = flag_hint(argv)
        message = f"{_one_line(error)}; {renamed}" if renamed else _one_line(error)
        raise ConfigError(message) from None
    if stray:
        is_file = stray[0].partition(":")[0].endswith((".py", ".json"))
        hint = f"--config={stray[0]}" if is_file else "--config.KEY=VALUE or --FLAG"
        raise ConfigError(f"unexpected argument {stray[0]!r}; all arguments are flags: {hint}")
    return [key for key in keys if flag_values[f"config.{key}"].present]


def _setting_type(cls: type, key: str) -> TypeHint:
    """Returns the annotation of the setting that the flag `--config.KEY` names.

    Raises:
        ConfigError: if the key names a section, or a key below a value.
        UnknownKeyError: if there is no such setting.
    """
    hint, path, names = cls, "config", key.split(".")
    for i, name in enumerate(names):
        if not (is_section(hint) or is_open_section(hint) or hint is Any):
            raise ConfigError(f"{path} is a value, not a section: --{path}=VALUE")
        try:
            hint = child_type(hint, name, path)
        except UnknownKeyError:
            if new_name := find_new_name("settings", key):
                message = f"unknown key config.{key}; it is now 'config.{new_name}'"
                raise UnknownKeyError(message) from None
            suffix = ".".join(names[i:])
            matches = [key for key in flatten(cls()) if f".{key}".endswith(f".{suffix}")]
            if matches:
                raise UnknownKeyError(
                    f"unknown key {path}.{suffix}; did you mean 'config.{matches[0]}'?"
                ) from None
            raise
        path += f".{name}"
    if is_section(hint) or is_open_section(hint):
        placeholder = "NAME.KEY" if typing.get_args(hint) else "KEY"
        inner = placeholder if is_open_section(hint) else next(iter(field_types(hint)), "KEY")
        raise ConfigError(f"{path} is a section, set its keys one by one: --{path}.{inner}=VALUE")
    return hint


def _iter_settings(cls: type, prefix: str = "") -> Iterator[tuple[str, TypeHint, str]]:
    """Yields the dotted key, the annotation and the description of every setting."""
    descriptions = field_descriptions(cls)
    for name, hint in field_types(cls).items():
        if is_section(hint):
            yield from _iter_settings(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint, descriptions[name]


def _assign(tree: EditableSection, key: str, value: object) -> None:
    *sections, name = key.split(".")
    path = "config"
    for part in sections:
        if part not in tree:
            raise UnknownKeyError(unknown_key_message(part, tree, path))
        tree, path = tree[part], f"{path}.{part}"
        if not isinstance(tree, EditableSection):
            raise ConfigError(f"{path} is a value, not a section: --{path}=VALUE")
    tree[name] = value


def _read_run_settings(file: Path) -> JsonObject:
    """Returns the settings in a run.json; nothing is executed.

    Raises:
        CheckpointError: if the file has another format, or other content than was written.
        ConfigError: if the file is too large, has no settings, or a key twice.
    """
    if (size := file.stat().st_size) > MAX_RUN_JSON_BYTES:
        raise ConfigError(f"has {size} bytes, at most {MAX_RUN_JSON_BYTES} are read")
    record = json.loads(file.read_text("utf-8"), object_pairs_hook=_reject_duplicate_keys)
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise ConfigError("has no entry 'settings'; give the run.json of a run")
    # A file of settings alone is no record of a run, and has no format.
    is_record = not record.keys().isdisjoint(run_json.RECORD_KEYS)
    if is_record and (problem := run_json.find_problem(record)):
        raise CheckpointError(f"--config={file} {problem}")
    return record["settings"]


def _reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    items = dict(pairs)
    if len(items) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"names {duplicate!r} twice")
    return items


def call_for_file(file: Path, call: Callable[..., T], *arguments: object) -> T:
    """Returns the result of `call(*arguments)`, whose errors become one line.

    Raises:
        ConfigError: for any error but one of the project's, with its location in `file`.
        IsoflopError: unchanged, if it is another error of the project.
    """
    try:
        return call(*arguments)
    except ConfigError as error:
        raise ConfigError(f"{_error_location(error, file)}: {_one_line(error)}") from error
    except IsoflopError:
        raise
    except SystemExit as error:  # a config that ends the process would end it without a word
        raise ConfigError(f"{file} ended the program ({error}); return settings") from error
    except Exception as error:
        message = f"{type(error).__name__}: {_one_line(error)}"
        if isinstance(error, KeyError) and arguments and error.args == arguments[-1:]:
            message = f"unknown size {error}"
        if hint := import_hint(error):
            message += f"; {hint}"
        raise ConfigError(f"{_error_location(error, file)}: {message}") from error


def _error_location(error: Exception, file: Path) -> str:
    """The file, and the line in it that raised `error` or called the function that did."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return f"{file}, line {frames[-1].lineno} ({frames[-1].line})" if frames else str(file)


def _missing_file_message(path: str) -> str:
    if not path:
        return "--config= names no file; omit it to start from the defaults"
    if os.path.isdir(path):
        return f"--config={path} is a folder; name a file in it"
    folder = os.path.dirname(path)
    files = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    near = difflib.get_close_matches(os.path.basename(path), files, 1)
    hint = f"; did you mean {os.path.join(folder, near[0])!r}?" if near else ""
    return f"--config={_one_line(path)} does not exist{hint}"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
