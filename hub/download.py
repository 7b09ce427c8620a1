"""Finds the local folder of a checkpoint, and downloads it from the hub if necessary."""

from pathlib import Path

from data.published.hub_files import REPO_PATTERN, download
from errors import CheckpointError
from storage import scratch
from storage.paths import expand_user
from storage.remote import is_url

DOWNLOAD_PATTERNS = ["*.json", "*.safetensors", "*.jinja"]  # no code and no pickled weights


def resolve_folder(path: str | Path) -> Path:
    """Returns the folder of a path, of a URL or of `owner/name@revision`, downloaded if necessary.

    A download from the hub is pinned to the commit that the revision names at the time.

    Raises:
        CheckpointError: if `path` is neither a folder nor the name of a repository.
    """
    check_source(path)
    folder = expand_user(str(scratch.local_copy(path)), "the checkpoint")
    if folder.is_dir():
        return folder
    return download(str(path), DOWNLOAD_PATTERNS, needed="its config.json and safetensors")


def check_source(path: str | Path) -> None:
    """Checks that `path` may be the source of parameters, before any work starts.

    Raises:
        CheckpointError: if `path` is neither a folder nor the name of a repository.
    """
    name = str(path).partition("@")[0]
    if is_url(path):
        return
    if not expand_user(str(path), "the checkpoint").is_dir() and not REPO_PATTERN.fullmatch(name):
        raise CheckpointError(
            f"{str(path)[:200]} is neither a folder nor the owner/name of a Hugging Face repository"
        )
