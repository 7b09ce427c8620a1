"""A checkpoint's folder: one that is here, or a repository of the hub at a pinned revision."""

import importlib
import re
from pathlib import Path
from typing import Any

from errors import CheckpointError, ConfigError

REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
WANTED = ["*.json", "*.safetensors"]  # nothing else is downloaded: no code, no pickles


def local(path: str | Path) -> Path:
    """The folder `path`, or that of `owner/name@revision` after a download."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    name, _, revision = str(path).partition("@")
    if not REPOSITORY.fullmatch(name):
        raise CheckpointError(f"{path} is no folder and no owner/name of the hub; give either")
    return Path(_download(name, revision or "main"))


def _download(name: str, revision: str) -> str:
    library = _library(name)
    try:
        commit = library.HfApi().model_info(name, revision=revision).sha
        return str(library.snapshot_download(name, revision=commit, allow_patterns=WANTED))
    except Exception as error:  # of many kinds: no network, no such name, no permission
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{name}@{revision} cannot be downloaded ({why}); give a local folder with its "
            "config.json and safetensors"
        ) from error


def _library(name: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(
            f"{name} is no folder here, and a name of the hub needs the library: "
            "pip install 'isoflop[hub]', or give a local folder"
        ) from error
