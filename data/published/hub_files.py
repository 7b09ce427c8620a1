"""Downloads of files from the Hugging Face hub, pinned to a commit; needs `huggingface_hub`."""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import CheckpointError, ConfigError

REPO_PATTERN = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")
TOKENIZER_PATTERNS = ["*.json", "*.jinja"]
# Files of weights are not needed for a tokenizer; their index is one of the *.json.
NOT_TOKENIZER = ["*.index.json"]


def download(
    spec: str, patterns: Sequence[str], ignore: Sequence[str] = (), needed: str = "its files"
) -> Path:
    """Downloads the files of `name@revision` (by default main) and returns their folder.

    The download is pinned to the commit that the revision names at the time. Without a network, the
    files of an earlier download are used.

    Args:
        spec: `owner/name` or `owner/name@revision`.
        patterns: the names of the files to download.
        ignore: names among them that are not downloaded.
        needed: what a local folder must contain instead, for messages.

    Raises:
        CheckpointError: if `spec` is not the name of a repository, or the download fails.
    """
    name, _, revision = spec.partition("@")
    if not REPO_PATTERN.fullmatch(name):
        raise CheckpointError(f"{spec[:200]!r} is not the owner/name of a Hugging Face repository")
    library = _import_hub(name)
    revision = revision or "main"
    options = {"allow_patterns": list(patterns), "ignore_patterns": list(ignore) or None}
    try:
        commit = library.HfApi().model_info(name, revision=revision).sha
        return Path(library.snapshot_download(name, revision=commit, **options))
    except Exception as error:  # No network, an unknown name, no permission, ...
        try:
            cached = library.snapshot_download(
                name, revision=revision, local_files_only=True, **options
            )
            return Path(cached)
        except Exception:  # There was no earlier download.
            why = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointError(
                f"{name}@{revision} cannot be downloaded ({why}); give a local folder with {needed}"
            ) from error


def _import_hub(name: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(
            f"{name} is no local folder, and a download from the hub needs huggingface_hub: "
            "pip install 'isoflop[hub]', or give a local folder"
        ) from error
