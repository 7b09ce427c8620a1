"""Documents with groups: the reading of lines of JSON that name a group."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from data.loss_weights import WeightedDocument, WeightedPart
from data.readers import json_lines, read_policy

GROUP_NAME = re.compile(r"[\w.+#-]{1,40}")


def iter_grouped(
    path: Path, policy: read_policy.ErrorPolicy, text_field: str, group_field: str
) -> Iterator[WeightedDocument]:
    """Yields the documents of a file of JSON lines with their groups."""
    for line in json_lines.iter_json_texts(path, text_field, policy):
        group = line.record.get(group_field)
        if isinstance(group, str) and GROUP_NAME.fullmatch(group):
            yield WeightedDocument((WeightedPart(line.text),), group)
        else:
            policy.reject_document(
                f"{read_policy.format_location(path, line.offset)} has "
                f"{textwrap.shorten(repr(group), 40)} under {group_field!r}, must be a name of "
                "letters, digits and . _ + # -; correct it or set data.on_error to skip"
            )
