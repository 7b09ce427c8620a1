"""The command line: `--config=file.py:size`, `--config.section.key=value`, a command's own flags.

    settings, provenance, flags = parse(sys.argv[1:], Settings, declare)

A config file is Python and is executed, with the rights of its reader: run only what you trust. The
safe route for anything else is `--config=run.json`, which reads settings and executes nothing.

Left out on purpose: `ml_collections.config_flags`, whose syntax this keeps. It takes overrides only
behind a file, answers an unknown key with a traceback, runs a second file inside the module of the
first (one without `get_config` gets the old one) and stale bytecode of a file just rewritten.
"""

import ast
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
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

from absl import flags as absl_flags
from ml_collections.config_dict import ConfigDict

from errors import ConfigError, IsoflopError
from schema import Range
from training.tree import (
    Section,
    UnknownKey,
    as_json,
    differences,
    editable,
    fitted,
    from_json,
    frozen,
    given,
    hints_of,
    is_free,
    is_section,
    leaves,
    reopened,
    rows,
    shown,
    unknown,
    within,
)

__all__ = ["as_json", "differences", "editable", "from_json", "frozen", "parse", "rows"]

T = TypeVar("T")
NAMES = {bool: "true | false", int: "integer", float: "number", str: "text"}


class Command(NamedTuple, Generic[T]):
    """A parsed command line; `provenance` says of each dotted key "default", "file" or "flag"."""

    settings: T
    provenance: dict[str, str]
    flags: absl_flags.FlagValues


def parse(
    argv: Sequence[str],
    cls: type[T],
    declare: Callable[[absl_flags.FlagValues], None] | None = None,
    *,
    about: str = "",
) -> Command[T]:
    """Read `argv`, which starts behind the program's name. Every mistake is a ConfigError.

    `declare` defines the command's own flags (`flag_values=`); they live in this call alone, so
    that a process can parse many times. `--help` prints `about`, flags and settings, and exits.
    """
    values = absl_flags.FlagValues()
    what = "settings to start from: FILE.py, FILE.py:SIZE, or the run.json of a run"
    absl_flags.DEFINE_string("config", None, what, flag_values=values)
    if declare:
        declare(values)
    if {"-h", "-help", "--help"} & set(argv):
        print(usage(cls, values, about))
        raise SystemExit(0)
    keys = _read(argv, cls, values)
    tree = editable(cls()) if values.config is None else load(values.config, cls)
    for key in keys:
        _assign(tree, key, values[f"config.{key}"].value)
    settings = frozen(cls, tree)
    edited, defaults = set(given(tree)), leaves(cls())
    provenance = {
        key: "file" if key in edited or defaults.get(key) != value else "default"
        for key, value in leaves(settings).items()
    }
    return Command(settings, provenance | dict.fromkeys(keys, "flag"), values)


def load(spec: str, cls: type) -> Section:
    """What `FILE.py`, `FILE.py:SIZE` or `run.json` says, still open to flags."""
    path, colon, size = spec.partition(":")
    file, sizes = Path(path), (size,) if colon else ()
    if not os.path.isfile(file):
        raise ConfigError(_missing(path))
    if file.suffix not in (".py", ".json"):
        raise ConfigError(f"--config={spec}: must be a .py file or the run.json of a run")
    if file.suffix == ".json":
        if sizes:
            raise ConfigError(f"--config={spec}: a run.json takes no size; leave out ':{size}'")
        return _for(file, reopened, cls, _for(file, _recorded, file))
    make = _for(file, runpy.run_path, str(file)).get("get_config")
    if not callable(make):
        raise ConfigError(f"{file} has no get_config(); define it, returning the settings")
    try:
        inspect.signature(make).bind(*sizes)
    except TypeError:
        rule = "takes no size" if sizes else f"needs a size: --config={path}:SIZE"
        raise ConfigError(f"--config={spec}: get_config() {rule}") from None
    tree = _for(file, make, *sizes)
    if not isinstance(tree, (ConfigDict, Mapping)):
        raise ConfigError(f"get_config() of {file} returned {tree!r}; end it with `return c`")
    return _for(file, reopened, cls, tree)


def usage(cls: type, values: absl_flags.FlagValues, about: str = "") -> str:
    """The text of `--help`."""
    lines = [about.strip(), ""] if about else []
    lines += ["Flags:"]
    for flag in map(values.__getitem__, values):
        default = "" if flag.default in (None, "", False) else f" (default: {flag.default})"
        lines.append(f"  --{flag.name:<24} {_line(flag.help)}{default}")
    lines += ["", "Settings, with their defaults:"]
    defaults = leaves(cls())
    for key, hint in _every(cls):
        value = ".NAME.KEY=VALUE" if is_free(hint) else "=" + shown(defaults[key])
        lines.append(f"  --config.{key + value:<44} {described(hint)}".rstrip())
    return "\n".join(lines)


def _read(argv: Sequence[str], cls: type, values: absl_flags.FlagValues) -> list[str]:
    """Parse `argv` into `values`; the dotted keys that it overrides, which became flags."""
    try:
        arguments = values.read_flags_from_files(list(argv), force_gnu=False)
        found = (re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in arguments)
        keys = list(dict.fromkeys(match[1] for match in found if match))
        for key in keys:
            hint, name = _hint(cls, key), f"config.{key}"
            flag = absl_flags.Flag(_Text(hint, name), None, name, None, "", boolean=hint is bool)
            absl_flags.DEFINE_flag(flag, values)
        stray = values(["", *arguments])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        known = [*values, *(f"config.{key}" for key in leaves(cls()))]
        near = difflib.get_close_matches(error.flagname, known, 1)
        hint = f"did you mean '--{near[0]}'?" if near else "--help lists all"
        raise ConfigError(f"unknown flag {_line('--' + error.flagname)}; {hint}") from None
    except (absl_flags.Error, ValueError) as error:
        raise ConfigError(_line(error)) from None
    if stray:
        file = stray[0].partition(":")[0].endswith((".py", ".json"))
        way = f"--config={stray[0]}" if file else "--config.KEY=VALUE or --FLAG"
        raise ConfigError(f"unexpected argument {stray[0]!r}; everything is a flag: {way}")
    return [key for key in keys if values[f"config.{key}"].present]


class _Text(absl_flags.ArgumentParser):
    """absl's way to a value: typed by the annotation of the setting, not by its present value."""

    def __init__(self, hint: Any, key: str):
        self.hint, self.key = hint, key

    def parse(self, argument: str) -> Any:
        return fitted(_value(argument, self.hint), self.hint, self.key)


def _value(text: str, hint: Any) -> Any:
    """What `text` means under `hint`; text that means nothing is left for `fitted` to refuse."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _value(text, args[0])
    if origin is Literal:
        return next((choice for choice in args if shown(choice) == text), text)
    if origin is tuple:
        return _tuple(text, args)
    if hint is Any:
        value = _literal({"true": "True", "false": "False"}.get(text, text))
        return value if isinstance(value, (int, float, str, tuple, list)) else text
    if hint is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return hint(text)
    except ValueError:
        return text


def _tuple(text: str, hints: tuple[Any, ...]) -> Any:
    """`a,b`, or Python's `("a", "b")` for items that hold commas."""
    if text[:1] in ("(", "[", "'", '"'):
        value = _literal(text)
        return (value,) if isinstance(value, str) and value != text else value
    items = [item.strip() for item in text.removesuffix(",").split(",")] if text.strip() else []
    last = len(hints) - 1 - (hints[-1] is Ellipsis)
    return tuple(_value(item, hints[min(i, last)]) for i, item in enumerate(items))


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _hint(cls: type, key: str) -> Any:
    """The annotation of the setting that the flag `--config.KEY` names."""
    hint, path, names = cls, "config", key.split(".")
    for i, name in enumerate(names):
        if not (is_section(hint) or is_free(hint) or hint is Any):
            raise ConfigError(f"{path} is a value, not a section: --{path}=VALUE")
        try:
            hint = within(hint, name, path)
        except UnknownKey:
            rest = ".".join(names[i:])
            near = [known for known in leaves(cls()) if f".{known}".endswith(f".{rest}")]
            if near:
                raise UnknownKey(
                    f"unknown key {path}.{rest}; did you mean 'config.{near[0]}'?"
                ) from None
            raise
        path += f".{name}"
    if is_section(hint) or is_free(hint):
        free = "NAME.KEY" if typing.get_args(hint) else "KEY"
        inner = free if is_free(hint) else next(iter(hints_of(hint)), "KEY")
        raise ConfigError(f"{path} is a section, set its keys one by one: --{path}.{inner}=VALUE")
    return hint


def _every(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in hints_of(cls).items():
        if is_section(hint):
            yield from _every(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def _assign(tree: Any, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    path = "config"
    for part in sections:
        if part not in tree:
            raise UnknownKey(unknown(part, tree, path))
        tree, path = tree[part], f"{path}.{part}"
        if not isinstance(tree, Section):
            raise ConfigError(f"{path} is a value, not a section: --{path}=VALUE")
    tree[name] = value


def _recorded(file: Path) -> Any:
    """The settings in a run.json; nothing is executed."""
    record = json.loads(file.read_text("utf-8"), object_pairs_hook=_unique)
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise ConfigError("has no entry 'settings'; give the run.json of a run")
    return record["settings"]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"names {twice!r} twice")
    return found


def _for(file: Path, call: Callable, *arguments: Any) -> Any:
    """`call(*arguments)` on behalf of `file`; what it raises becomes one line with the place."""
    try:
        return call(*arguments)
    except ConfigError as error:
        raise ConfigError(f"{_place(error, file)}: {_line(error)}") from error
    except IsoflopError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {_line(error)}"
        if isinstance(error, KeyError) and arguments and error.args == arguments[-1:]:
            what = f"unknown size {error}"
        raise ConfigError(f"{_place(error, file)}: {what}") from error


def _place(error: Exception, file: Path) -> str:
    """The file, and the line in it that led to `error`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return f"{file}, line {frames[-1].lineno} ({frames[-1].line})" if frames else str(file)


def _missing(path: str) -> str:
    if not path:
        return "--config= names no file; leave it out to start from the defaults"
    if os.path.isdir(path):
        return f"--config={path} is a folder; name a file in it"
    folder = os.path.dirname(path)
    files = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    near = difflib.get_close_matches(os.path.basename(path), files, 1)
    hint = f"; did you mean {os.path.join(folder, near[0])!r}?" if near else ""
    return f"--config={_line(path)} does not exist{hint}"


def described(hint: Any) -> str:
    """What a setting takes, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        bounds = [str(extra) for extra in args[1:] if isinstance(extra, Range)]
        return " ".join([described(args[0]), *bounds])
    if origin is Literal:
        return " | ".join(map(shown, args))
    if origin is tuple:
        return ",".join("..." if arg is Ellipsis else described(arg) for arg in args)
    return NAMES.get(hint, "of your choice, by config files")


def _line(text: object) -> str:
    return " ".join(str(text).split())
