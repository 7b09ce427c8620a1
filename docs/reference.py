"""The page of all settings, generated from the dataclasses: type, default and description."""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from settings.descriptions import field_descriptions
from settings.flag_values import format_type
from settings.tree import format_value, is_section
from settings.types import field_types
from training.settings import Settings

HEAD = """# Settings

Every setting is a flag, `--config.KEY=VALUE`, and a line of a config file, `c.KEY = VALUE`. Config
files list only what differs from these defaults. This page is generated from the code.
"""


def settings() -> str:
    """Returns the page as Markdown, with one table for each section."""
    return "\n".join([HEAD, *_section(Settings, "")])


def _section(cls: Any, prefix: str) -> Iterator[str]:
    hints, descriptions = field_types(cls), field_descriptions(cls)
    defaults = {field.name: getattr(cls(), field.name) for field in dataclasses.fields(cls)}
    names = [name for name in hints if not is_section(hints[name])]
    if names:
        title = prefix.removesuffix(".") or "seed and objective"
        yield f"\n## {title}\n"
        if prefix and (text := inspect.getdoc(cls)) and not text.startswith(f"{cls.__name__}("):
            yield f"{' '.join(text.split())}\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name in names:
        cells = (
            format_type(hints[name]),
            format_value(defaults[name]),
            descriptions[name],
        )
        kind, value, description = (str(cell).replace("|", "\\|") for cell in cells)
        yield f"| `{prefix}{name}` | {kind} | `{value or '()'}` | {description} |"
    for name in hints:
        if is_section(hints[name]):
            yield from _section(hints[name], f"{prefix}{name}.")
