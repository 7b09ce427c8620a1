"""Names of the version before: an old setting, flag or name is refused with its new name.

`docs/renames.json` is the table, and no old name works. It maps

    modules, classes, functions, fields, settings, values, flags, run_keys, events, metrics, scores

each from the old name to the new one. Settings are dotted (`train.batch`), functions and fields
carry their module, and values are written `setting=value`. The file is read when an unknown name is
met for the first time.
"""

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path

TABLE = Path(__file__).parents[1] / "docs" / "renames.json"


@functools.cache
def load_renames() -> dict[str, dict[str, str]]:
    """Returns the table, by kind of name; an installation without the file has an empty table."""
    if not TABLE.is_file():
        return {}
    return json.loads(TABLE.read_text("utf-8"))


def find_new_name(kind: str, name: str) -> str:
    """Returns the name that replaces `name`, or "" if it was never renamed.

    A setting inside a variant, `model.variants.NAME.KEY`, is found by its last part.
    """
    names = load_renames().get(kind, {})
    if name in names:
        return names[name]
    if kind == "settings" and name.startswith("model.variants."):
        *_, key = name.split(".")
        new_keys = {new.rpartition(".")[2] for old, new in names.items() if old.endswith(f".{key}")}
        if len(new_keys) == 1:
            return f"{name.removesuffix(key)}{new_keys.pop()}"
    return ""


def find_new_value(setting: str, value: str) -> str:
    """Returns the value that replaces `value` of the setting with this name, or ""."""
    for old_value, new_value in load_renames().get("values", {}).items():
        if old_value.endswith(f".{setting}={value}"):
            return new_value
    return ""


def flag_hint(arguments: Iterable[str]) -> str:
    """Returns a hint for the first renamed flag in `arguments`, or "" if there is none."""
    for argument in arguments:
        spelled = re.sub(r"^--?", "--", argument)
        for flag in (spelled, spelled.partition("=")[0]):
            if new_flag := find_new_name("flags", flag):
                return f"{flag} is now {new_flag}"
    return ""


def import_hint(error: Exception) -> str:
    """Returns a hint for an import or a keyword that was renamed, or "" for any other error."""
    if isinstance(error, ImportError):
        missing = re.search(r"cannot import name '(\w+)' from '([\w.]+)'", str(error))
        names = [f"{missing[2]}.{missing[1]}", missing[2]] if missing else [error.name or ""]
        for name in names:
            for kind in ("modules", "functions", "classes"):
                if new_name := find_new_name(kind, name):
                    return f"{name} is now {new_name}"
    unexpected = r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'"
    keyword = re.search(unexpected, str(error))
    if keyword:
        class_name, field = keyword.groups()
        for old_name, new_name in load_renames().get("fields", {}).items():
            if old_name.endswith(f".{field}") and f".{class_name}." in new_name:
                return f"{class_name}.{field} is now {class_name}.{new_name.rpartition('.')[2]}"
    return ""
