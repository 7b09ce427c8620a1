"""The settings of groups of documents."""

from typing import Annotated

from errors import ConfigError
from settings.types import Range, config


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
