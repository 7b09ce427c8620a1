"""Input files: the search for the files of a setting.

Links are followed. A file counts once, whatever names and links lead to it, and a folder is
searched once, so that a link to one of its parents makes no loop. Only regular files are read: a
FIFO would wait for a writer, and a device has no end.
"""

import errno
import glob
import os
import stat
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from errors import DataError
from storage import scratch
from storage.paths import expand_user
from storage.remote import is_url, normalize_url

FileId = tuple[int | str, ...]  # Equal for all names of a file.
FILE_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class FoundFiles(NamedTuple):
    """The files of a setting, and remarks on what was left out."""

    paths: list[Path]
    notes: list[str]


def find_files(patterns: str, setting: str = "data.path") -> FoundFiles:
    """Returns the files of `patterns`: files, globs, folders and their URLs, separated by commas.

    Raises:
        DataError: if a pattern matches no file, a folder cannot be read, or a name is no file.
    """
    # The name of one file may contain a comma.
    is_one_file = _status(expand_user(patterns, setting)) is not None
    names = [patterns] if is_one_file else patterns.split(",")
    path_by_id: dict[FileId, Path] = {}
    left_out: dict[str, list[Path]] = {}
    for name in filter(None, map(str.strip, names)):
        path = _local_copy(name) if is_url(name) else expand_user(name, setting)
        matches = [path] if _status(path) is not None else _glob(path)
        files: list[tuple[Path, FileId]] = []
        for match in matches:
            status = _status(match)
            if status is None:
                left_out.setdefault("links lead to no file", []).append(match)
            elif stat.S_ISDIR(status.st_mode):
                files += _walk_files(match, left_out)
            else:
                check_regular(match, status)
                files.append((match, _file_id(match, status)))
        if not files:
            raise DataError(f"no file matches {name!r}; paths are relative to {Path.cwd()}")
        names_of_files = dict(sorted(files))
        for file, identity in names_of_files.items():
            if path_by_id.setdefault(identity, file) != file:
                kind = "names lead to files that other names lead to; each file is read once"
                left_out.setdefault(kind, []).append(file)
    notes = [
        f"{patterns}: {len(paths)} {what} (such as {min(paths)})"
        for what, paths in left_out.items()
    ]
    return FoundFiles(list(path_by_id.values()), notes)


def _local_copy(url: str) -> Path:
    """Downloads what a URL, perhaps with a glob, names; returns its path or glob on this disk."""
    url = normalize_url(url)
    parts = url.split("/")
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    pattern = "/".join(parts[first:])
    # The matches are searched on this disk; the store is only asked for what may be one.
    top = scratch.local_copy("/".join(parts[:first]), pattern=pattern.replace("**/", "*"))
    return top / pattern if pattern else top


def file_id(path: Path) -> FileId:
    """Returns an identity that all names and links of a file have in common.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        return _file_id(path, path.stat())
    except OSError as error:
        raise DataError(_unreadable(path, error)) from error


def check_regular(path: Path, status: os.stat_result) -> None:
    """Refuses a FIFO, a socket or a device.

    Raises:
        DataError: if the file is no regular file.
    """
    if not stat.S_ISREG(status.st_mode):
        kind = FILE_KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise DataError(
            f"{path} is {kind}, must be a regular file or a folder; write its content to a file"
        )


def _status(path: Path) -> os.stat_result | None:
    """Returns the status of the file that `path` leads to; None if it leads nowhere.

    Raises:
        DataError: if there may be a file, but it cannot be looked at.
    """
    try:
        return path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise DataError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read: {error.strerror}; change its permissions, or leave it out"


def _file_id(path: Path, status: os.stat_result) -> FileId:
    # Some network file systems have no inode numbers.
    return (status.st_dev, status.st_ino) if status.st_ino else (str(path.resolve()),)


def _list_folder(folder: Path) -> list[str]:
    """Returns the names in a folder, sorted.

    Raises:
        DataError: if the folder cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(_unreadable(folder, error)) from error


def _iter_folders(folders: Iterable[Path]) -> Iterator[Path]:
    """Yields the folders and all folders below them, each once, except hidden ones."""
    seen: set[FileId] = set()
    waiting = list(folders)[::-1]
    while waiting:
        folder = waiting.pop()
        status = _status(folder)
        if status is None or not stat.S_ISDIR(status.st_mode):
            continue
        if (identity := _file_id(folder, status)) in seen:
            continue
        seen.add(identity)
        yield folder
        waiting += [folder / name for name in _list_folder(folder)[::-1] if name[0] != "."]


def _walk_files(top: Path, left_out: dict[str, list[Path]]) -> Iterator[tuple[Path, FileId]]:
    """Yields the regular files below a folder, except hidden ones, and records what it omits."""
    for folder in _iter_folders([top]):
        for name in _list_folder(folder):
            path = folder / name
            status = None if name[0] == "." else _status(path)
            if status and stat.S_ISREG(status.st_mode):
                yield path, _file_id(path, status)
            elif status and not stat.S_ISDIR(status.st_mode):
                left_out.setdefault("entries are FIFOs, sockets or devices", []).append(path)
            elif status is None and name[0] != ".":
                left_out.setdefault("links lead to no file", []).append(path)


def check_disjoint(paths: dict[str, list[Path]]) -> None:
    """Checks that no file is in two splits.

    Raises:
        DataError: if one is.
    """
    splits: dict[FileId, str] = {}
    for split, listed in paths.items():
        for path in listed:
            first = splits.setdefault(file_id(path), split)
            if first != split:
                raise DataError(
                    f"{path} is in the {first} and in the {split} split; remove it from one"
                )


def file_identity(path: Path) -> list:
    """Returns path, size and modification time, which change if the file changes.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _glob(pattern: Path) -> list[Path]:
    """Returns what matches the pattern; ** searches each folder once, through links too."""
    matches = [Path(pattern.anchor)]
    for part in pattern.parts[1 if pattern.anchor else 0 :]:
        if part == "**":
            matches = list(_iter_folders(matches))
        elif glob.has_magic(part):
            matches = [
                folder / name
                for folder in matches
                if folder.is_dir()
                for name in _list_folder(folder)
                if fnmatchcase(name, part) and (name[0] != "." or part[0] == ".")
            ]
        else:
            matches = [folder / part for folder in matches if os.path.lexists(folder / part)]
    return matches
