"""Documents with groups: the settings, and the reading of lines of JSON that name a group."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from data import text_files
from data.loss_weights import WeightedDocument, WeightedPart
from errors import ConfigError
from settings.types import Range, config

GROUP_NAME = re.compile(r"[\w.+#-]{1,40}")


@config
class GroupConfig:
    """Groups of documents and their shares in training."""

    # For jsonl: name of the field with a document's group, such as its language; "": no groups.
    field: str = ""
    # Training draws from a group of n tokens in proportion to n^(1/temperature)
    # (arXiv:1911.02116); 1: as the text is.
    temperature: Annotated[float, Range(low=1)] = 1.0

    def check_source(self, source: str, has_weights: bool) -> None:
        """Checks that the source has groups.

        Raises:
            ConfigError: if it has none, or if a temperature has no groups.
        """
        if self.field and (source != "jsonl" or has_weights):
            raise ConfigError(
                f"data.groups.field {self.field!r} needs data.source jsonl without "
                "data.chat_template and data.weight_field; leave them empty"
            )
        if self.temperature > 1 and not self.field:
            raise ConfigError(
                f"data.groups.temperature {self.temperature:g} needs data.groups.field, the field "
                "with the group of each document; set it, or the temperature to 1"
            )


def iter_grouped(
    path: Path, policy: text_files.ErrorPolicy, text_field: str, group_field: str
) -> Iterator[WeightedDocument]:
    """Yields the documents of a file of JSON lines with their groups."""
    for line in text_files.iter_json_texts(path, text_field, policy):
        group = line.record.get(group_field)
        if isinstance(group, str) and GROUP_NAME.fullmatch(group):
            yield WeightedDocument((WeightedPart(line.text),), group)
        else:
            policy.reject_document(
                f"{text_files.format_location(path, line.offset)} has "
                f"{textwrap.shorten(repr(group), 40)} under {group_field!r}, must be a name of "
                "letters, digits and . _ + # -; correct it or set data.on_error to skip"
            )
