"""Local folders for URLs: code that needs real files works there, and this module copies them.

A URL has two folders below the user's cache: a copy, which commands that read bring up to date, and
a scratch folder, in which one process at a time writes (`training/run/mirror.py`). Either ends with
the last name of the URL. Code below the commands sees plain paths, and `url_of` leads back. When a
folder is made, those that nobody has used for a week are deleted, beyond a number of newest ones.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Generator, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from errors import DiskError
from storage.disk_errors import disk_errors
from storage.paths import expand_user
from storage.remote import RemoteFolder, RemoteObject, is_url, normalize_url

ROOT = "~/.cache/isoflop/remote"
Kind = Literal["copies", "scratch"]
MAX_FOLDERS = 16  # Folders of a kind that are kept, however old.
UNUSED_SECONDS = 7 * 86400.0  # Time after which one of the others is deleted.
URL_FILE, INDEX_FILE, LOCK_FILE = ".url", ".index.json", ".lock"
PARTS_SUFFIX = ".parts"  # of a folder with the numbered parts of a log
PART_PATTERN = re.compile(r"([0-9]{4,})-([0-9]{12,})")  # generation, and offset of the first byte
WAY_OUT = "the local copy of a URL needs space and permissions there"
LOCK_NAME = "LOCK"  # of the file or the folder that says who owns a run


def local_path(path: str | Path, kind: Kind = "scratch") -> Path:
    """Returns the local folder of a URL, which may not exist; ~ is replaced in another path."""
    if not is_url(path):
        return expand_user(path, "a path")
    url = normalize_url(path)
    folder = _root() / kind / hashlib.sha256(url.encode()).hexdigest()[:16]
    with disk_errors(folder, WAY_OUT):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / URL_FILE).exists():
            _delete_unused(folder.parent)
            partial = folder / f"{URL_FILE}.{os.getpid()}"
            partial.write_text(url, "utf-8")
            partial.replace(folder / URL_FILE)
        os.utime(folder / URL_FILE)
    return folder / url.rpartition("/")[2]


def _delete_unused(parent: Path) -> None:
    """Deletes the folders of URLs that were not used for long, beyond the newest ones.

    A live process writes to its folder more often: a run its log, and its lock every minute.
    """
    used = {folder: _last_use(folder) for folder in parent.iterdir() if folder.is_dir()}
    oldest_first = sorted(used, key=lambda folder: used[folder])
    for folder in oldest_first[:-MAX_FOLDERS]:
        if time.time() - used[folder] > UNUSED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _last_use(folder: Path) -> float:
    """Returns the time at which something was last written near the top of a folder."""
    paths = [folder, *folder.glob("*"), *folder.glob("*/*")]
    return max((os.lstat(path).st_mtime for path in paths if os.path.lexists(path)), default=0.0)


def url_of(path: Path) -> str:
    """Returns the URL that a local path stands for, "" if it is an ordinary path."""
    try:
        kind, name, _, *below = path.absolute().relative_to(_root()).parts
        url = _root().joinpath(kind, name, URL_FILE).read_text("utf-8")
    except (ValueError, OSError):
        return ""
    return "/".join([url, *below])


def local_copy(path: str | Path, *, without: tuple[str, ...] = (), pattern: str = "") -> Path:
    """Returns a local copy of a URL, up to date; ~ is replaced in another path.

    Args:
        path: the URL of an object or of a folder.
        without: names of files and subfolders at any depth that are not copied.
        pattern: if given, only objects whose relative name matches it are copied.

    Raises:
        DiskError: if there is nothing at the URL.
    """
    if not is_url(path):
        return expand_user(path, "a path")
    target, remote = local_path(path, "copies"), RemoteFolder(str(path))
    with disk_errors(target, WAY_OUT), _lock(target.parent):
        listing = remote.list()
        if not listing:
            raise DiskError(f"{remote.url} does not exist in the store; correct the URL")
        names = {
            name: item
            for name, item in listing.items()
            if not {LOCK_NAME, *without} & set(name.split("/"))
            and (not pattern or fnmatchcase(name, pattern))
        }
        _bring_up_to_date(remote, target, names, listing)
    return target


def _bring_up_to_date(
    remote: RemoteFolder,
    target: Path,
    names: dict[str, RemoteObject],
    listing: dict[str, RemoteObject],
) -> None:
    """Downloads the objects that changed, and deletes the files whose objects are gone."""
    index_path = target.parent / INDEX_FILE
    try:
        index = json.loads(index_path.read_text("utf-8"))
    except (OSError, ValueError):
        index = {}
    for name in [name for name in index if name not in listing]:
        with contextlib.suppress(FileNotFoundError):
            _file_in(target, name).unlink()
        del index[name]
    for name, item in names.items():
        path = _file_in(target, name)
        entry = [item.size, item.version]
        if index.get(name) == entry and path.is_file() and path.stat().st_size == item.size:
            continue
        if name == "" and target.is_dir():
            shutil.rmtree(target)
        remote.download(name, path)
        os.utime(path, (item.modified, item.modified))
        index[name] = entry
        index_path.write_text(json.dumps(index), "utf-8")
    index_path.write_text(json.dumps(index), "utf-8")
    join_all_parts(target)


def download_tree(remote: RemoteFolder, target: Path, names: Iterable[str]) -> None:
    """Downloads objects to the same names below `target`, and joins the parts of logs."""
    with disk_errors(target, WAY_OUT):
        for name in names:
            remote.download(name, _file_in(target, name))
        join_all_parts(target)


def upload_tree(folder: Path) -> None:
    """Uploads all files of a local folder of a URL; an ordinary folder is left as it is."""
    if not (url := url_of(folder)):
        return
    remote = RemoteFolder(url)
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    for name in sorted(path.relative_to(folder).as_posix() for path in paths):
        remote.upload(folder / name, name)


def refresh_file(path: Path) -> None:
    """Downloads one file of a local folder of a URL, if the store has it."""
    if url := url_of(path.parent):
        data = RemoteFolder(url).read(path.name)
        if data is not None:
            with disk_errors(path, WAY_OUT):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def upload_file(path: Path) -> None:
    """Uploads one file of a local copy of a URL; another file is left as it is."""
    if url := url_of(path.parent):
        RemoteFolder(url).upload(path, path.name)


def newest_parts(names: Iterable[str]) -> list[str]:
    """Returns the names of the parts of a log that count, in order: those of the last generation.

    Raises:
        DiskError: if a name is none of a part.
    """
    parts = []
    for name in names:
        match = PART_PATTERN.fullmatch(name)
        if match is None:
            raise DiskError(f"{name} is no part of a log, such as 0001-000000000000; move it away")
        parts.append((int(match[1]), int(match[2]), name))
    newest = max((generation for generation, _, _ in parts), default=0)
    return [name for generation, _, name in sorted(parts) if generation == newest]


def join_all_parts(folder: Path) -> None:
    """Writes NAME.jsonl beside each folder NAME.parts from its parts, as far as they reach."""
    for parts in sorted(folder.rglob(f"*{PARTS_SUFFIX}")) if folder.is_dir() else []:
        log, size = parts.with_suffix(".jsonl"), 0
        partial = log.with_name(f".{log.name}.partial")
        with partial.open("wb") as file:
            for name in newest_parts(path.name for path in parts.iterdir() if path.name[0] != "."):
                if int(name.rpartition("-")[2]) != size:
                    break  # a part is missing; the seal of the log finds that
                size += file.write((parts / name).read_bytes())
        partial.replace(log)


def _file_in(target: Path, name: str) -> Path:
    """Returns the path of an object below `target`.

    Raises:
        DiskError: if the name would leave the folder.
    """
    if name and any(part in ("", ".", "..") for part in name.split("/")):
        raise DiskError(f"the object {name!r} has no valid name of a file; rename it")
    return target / name if name else target


def _root() -> Path:
    """Returns the folder of all scratch folders.

    Raises:
        DiskError: if this user has no home folder.
    """
    try:
        return Path(ROOT).expanduser()
    except RuntimeError as error:
        raise DiskError(f"{ROOT}: this user has no home folder; set HOME") from error


@contextlib.contextmanager
def _lock(folder: Path) -> Generator[None, None, None]:
    """Holds the lock of a copy, so that two processes do not download it at once."""
    with (folder / LOCK_FILE).open("w") as file:
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
