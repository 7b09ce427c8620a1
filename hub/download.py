"""Finds the local folder of a checkpoint, and downloads it from the hub if necessary."""

import importlib
import re
from pathlib import Path
from typing import Any

from errors import CheckpointError, ConfigError

REPO_PATTERN = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
DOWNLOAD_PATTERNS = ["*.json", "*.safetensors"]  # no code and no pickled weights


def resolve_folder(path: str | Path) -> Path:
    """Returns the folder `path`, or downloads `owner/name@revision` and returns its folder.

    The download is pinned to the commit that the revision (by default main) names at the time.

    Raises:
        CheckpointError: if `path` is neither a folder nor the name of a repository.
    """
    folder = Path(path).expanduser()
    check_source(path)
    if folder.is_dir():
        return folder
    name, _, revision = str(path).partition("@")
    return Path(_download(name, revision or "main"))


def check_source(path: str | Path) -> None:
    """Checks that `path` may be the source of parameters, before any work starts.

    Raises:
        CheckpointError: if `path` is neither a folder nor the name of a repository.
    """
    name = str(path).partition("@")[0]
    if not Path(path).expanduser().is_dir() and not REPO_PATTERN.fullmatch(name):
        raise CheckpointError(
            f"{path} is neither a folder nor the owner/name of a Hugging Face repository"
        )


def _download(name: str, revision: str) -> str:
    library = _import_hub(name)
    try:
        commit = library.HfApi().model_info(name, revision=revision).sha
        return str(
            library.snapshot_download(name, revision=commit, allow_patterns=DOWNLOAD_PATTERNS)
        )
    except Exception as error:  # no network, an unknown name, no permission, ...
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{name}@{revision} cannot be downloaded ({why}); give a local folder with its "
            "config.json and safetensors"
        ) from error


def _import_hub(name: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(
            f"{name} is no local folder, and a download from the hub needs huggingface_hub: "
            "pip install 'isoflop[hub]', or give a local folder"
        ) from error
