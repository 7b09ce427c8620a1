"""Paths of a run: valid names, paths that follow no link, and folders that appear whole."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from errors import ConfigError, DiskError
from storage.disk_errors import disk_errors

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
RESERVED_NAMES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10)),
}
STAGE_PREFIX = ".stage."  # of the folder whose files appear together
GLOB_CHARACTERS = "*?[]\\"


def validate_name(name: str, label: str) -> str:
    """Returns `name` if it may become a file name; `label` is its role in the error message.

    Raises:
        ConfigError: if the name is reserved or has other characters than a file name may have.
    """
    if not NAME_PATTERN.fullmatch(name) or name.split(".")[0].lower() in RESERVED_NAMES:
        raise ConfigError(
            f"{label} is {name!r}; a name has 1 to 128 letters, digits, '.', '_' or '-', begins "
            "with a letter or digit, and is not reserved by an operating system"
        )
    return name


def validate_run_path(path: Path) -> Path:
    """Returns the path of a run folder if checkpoints can be written below it.

    Orbax merges the arrays of all processes by a glob over the absolute path. The path is also part
    of messages and of JSON.

    Raises:
        ConfigError: if it has characters of a glob, control characters, or is no UTF-8.
    """
    text = str(path.absolute())
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(text).decode(errors="backslashreplace")
        raise ConfigError(
            f"--workdir: the path {shown} is not UTF-8, which JSON files cannot hold; use another "
            "path"
        ) from None
    if characters := sorted({c for c in text if c in GLOB_CHARACTERS or ord(c) < 32}):
        raise ConfigError(
            f"--workdir: the path {text!r} has {' '.join(map(repr, characters))}, with which "
            "checkpoints cannot be written; use a path without * ? [ ] \\ and control characters"
        )
    return path


def safe_join(root: Path, *parts: str) -> Path:
    """Returns `root/parts...`, which is guaranteed to lie inside `root`.

    Raises:
        DiskError: if a part is a link or would leave `root`.
    """
    path = root
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "\0" in part:
            raise DiskError(f"{part!r} is not a valid file name in {root}")
        path = path / part
        if path.is_symlink():
            raise DiskError(f"{path} is a link, which is not followed; put the real folder there")
    return path


def remove_tree(path: Path, root: Path) -> None:
    """Deletes the folder `path`, a direct child of `root`; it never follows a link."""
    with disk_errors(path):
        shutil.rmtree(safe_join(root, path.relative_to(root).as_posix()))


def check_writable(folder: Path) -> None:
    """Creates `folder` if necessary, and checks that files can be created in it.

    A command that computes for long calls this before it computes what it will write.

    Raises:
        OSError: as a DiskError, if they cannot.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
        os.close(file)
        os.unlink(name)


@contextlib.contextmanager
def staged_folder(target: Path) -> Generator[Path, None, None]:
    """Yields an empty folder whose files move to the folder `target` when the body ends.

    If the body fails, its files are deleted, and `target` is as it was before, or empty. A process
    that was killed leaves its folder, which the next call for `target` deletes.

    Raises:
        OSError: as a DiskError, if the files cannot be written or moved.
    """
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for path in target.glob(f"{STAGE_PREFIX}*"):
            with contextlib.suppress(OSError), _locked_folder(path):  # locked: its owner is alive
                shutil.rmtree(path, ignore_errors=True)
        stage = Path(tempfile.mkdtemp(prefix=STAGE_PREFIX, dir=target))
        try:
            with _locked_folder(stage):
                yield stage
                for path in sorted(stage.iterdir()):
                    os.replace(path, target / path.name)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def _locked_folder(path: Path) -> Generator[None, None, None]:
    """Holds the lock of a folder, which ends with its process.

    Raises:
        BlockingIOError: if a process that is alive holds it.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(folder)


def sync_folder(path: Path) -> None:
    """Makes renames inside `path` durable."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
