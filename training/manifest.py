"""MANIFEST.json: what a checkpoint consists of, written last. Without it there is no checkpoint.

format, writer, created, run_id, step
leaves    name -> shape, dtype
files     path -> size, sha256
tainted   the parameters that are not finite
describe  what the run is; meta: what the step needs besides arrays (data hash ...)
sha256    of all the rest, so that a flipped bit here is found too
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from errors import CheckpointError, DiskError
from training.files import decode, encode, read_json, write_json

FORMAT = 1
NAME = "MANIFEST.json"
FIELDS = {"run_id": str, "step": int, "leaves": Mapping, "files": Mapping, "meta": Mapping}


class Found(NamedTuple):
    """A step folder as it is: its manifest, or what is wrong with it; neither in a stray folder."""

    path: Path
    content: dict[str, Any] | None
    problem: str = ""


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Seal `folder`: all in it is flushed and hashed, then the manifest appears, whole."""
    _flush(folder)
    files = {name: _entry(folder / name) for name in _files(folder)}
    body = decode(encode({"format": FORMAT, **content, "files": files}))
    write_json(folder / NAME, body | {"sha256": _digest(body)})


def look(folder: Path, *, hashes: bool) -> Found:
    """Read and check the manifest of `folder`; with `hashes` every byte is read.

    A newer format is no damage, but a CheckpointError: falling back would hide the newest state.
    """
    if folder.is_symlink() or not folder.is_dir():
        return Found(folder, None)
    try:
        content = read_json(folder / NAME)
    except (CheckpointError, DiskError) as error:
        return Found(folder, None, str(error))
    if content is None:
        return Found(folder, None, f"no {NAME}" if (folder / "state").is_dir() else "")
    digest = content.pop("sha256", None)
    try:
        whole = digest == _digest(content)
    except RecursionError:
        whole = False
    if not whole:
        return Found(folder, None, f"{NAME} is damaged")
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {version}, written by {content.get('writer')}; this "
            f"reads up to {FORMAT}: use the version that wrote it"
        )
    if not all(isinstance(content.get(key), kind) for key, kind in FIELDS.items()):
        return Found(folder, None, f"{NAME} is incomplete")
    return Found(folder, content, _damage(folder, content["files"], hashes))


def _damage(folder: Path, files: Mapping[str, Mapping[str, Any]], hashes: bool) -> str:
    """The first file that is not what the manifest says; "" if all are."""
    here = _files(folder)
    for name, entry in files.items():
        if name not in here:
            return f"{name} is missing"
        if here[name] != entry["size"]:
            return f"{name} has {here[name]} bytes, not {entry['size']}"
    for name, entry in files.items() if hashes else ():
        try:
            if _entry(folder / name) != entry:
                return f"{name} has other content than was saved"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def forget_cache(folder: Path) -> None:
    """Let the next reading of `folder` be of the disk, where the page cache can be told so."""
    if not hasattr(os, "posix_fadvise"):
        return
    for name in _files(folder):
        file = os.open(folder / name, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def _flush(folder: Path) -> None:
    """Wait until files and folders are on the disk; orbax does so for arrays alone."""
    for top, _, names in os.walk(folder, topdown=False):
        for path in (*names, ""):
            file = os.open(Path(top, path), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(file)
            finally:
                os.close(file)


def _files(folder: Path) -> dict[str, int]:
    """Regular files below `folder` with their sizes, links neither followed nor counted."""
    found = {}
    for top, _, names in os.walk(folder, followlinks=False):
        for name in sorted(names):
            path = Path(top, name)
            if path.is_file() and not path.is_symlink() and path != folder / NAME:
                found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": digest}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(encode(content).encode()).hexdigest()
