"""Parser of the flags of a command that has no settings, with the project's errors."""

import argparse
from typing import NoReturn

from errors import ConfigError
from settings.renames import flag_hint


class FlagParser(argparse.ArgumentParser):
    """A parser that raises the project's errors."""

    def error(self, message: str) -> NoReturn:
        """Reports a wrong flag.

        Raises:
            ConfigError: always.
        """
        hint = flag_hint(message.split()) or "--help lists the flags"
        raise ConfigError(f"{message}; {hint}")
