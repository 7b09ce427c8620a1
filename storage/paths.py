"""Local paths as users write them: `~` is a home folder, where a shell left it as it is."""

from pathlib import Path

from errors import ConfigError


def expand_user(path: str | Path, setting: str) -> Path:
    """Returns `path`, the value of `setting`, with ~ replaced by the home folder.

    Shells replace no ~ behind an equals sign, as in `--workdir=~/runs`.

    Raises:
        ConfigError: if the user after ~ does not exist, or has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{setting} is {str(path)[:200]!r}: there is no such user, or this user has no home "
            "folder (HOME is not set); write the full path"
        ) from error
