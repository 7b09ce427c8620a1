"""Reads and writes MANIFEST.json, the list of a checkpoint's content.

The manifest is written last; a folder without it is no checkpoint. Its keys:

format, writer, created, run_id, step
leaves            name -> shape, dtype
files             path -> size, sha256
nonfinite_params  names of the parameters that are not finite
meta              values that the step needs besides arrays (data hash, ...)
sha256            hash of all other keys, so that a flipped bit in the manifest is detected too
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

from errors import CheckpointError, DiskError
from settings import run_json
from settings.json_types import JsonObject
from training.checkpoint.param_names import LeafEntry
from training.run.atomic_io import FileSeal, read_json, write_json
from training.run.seal import seal_file
from training.run.strict_json import decode_json, encode_json

FORMAT = 2
FILE_NAME = "MANIFEST.json"
REQUIRED_FIELDS = {"run_id": str, "step": int, "leaves": Mapping, "files": Mapping, "meta": Mapping}


class Manifest(TypedDict):
    """The content of a manifest without its own hash; the docstring above has the keys."""

    format: int
    writer: str
    created: str
    run_id: str
    step: int
    leaves: dict[str, LeafEntry]
    files: dict[str, FileSeal]
    nonfinite_params: list[str]
    meta: JsonObject


class StepFolder(NamedTuple):
    """A step folder with its manifest or the damage; both are empty for a foreign folder."""

    path: Path
    content: Manifest | None
    problem: str = ""


def write(folder: Path, content: Mapping[str, object]) -> None:
    """Seals `folder`: flushes and hashes all files, then writes the manifest atomically."""
    _fsync_tree(folder)
    files = {name: seal_file(folder / name) for name in _file_sizes(folder)}
    body = decode_json(encode_json({"format": FORMAT, **content, "files": files}))
    write_json(folder / FILE_NAME, run_json.add_hash(body))


def inspect_folder(folder: Path, *, check_hashes: bool) -> StepFolder:
    """Reads and checks the manifest of `folder`; with `check_hashes` it reads every byte.

    Raises:
        CheckpointError: if the manifest has another format. This is no damage: falling back to an
            earlier step would hide the newest state.
    """
    if folder.is_symlink() or not folder.is_dir():
        return StepFolder(folder, None)
    try:
        content = read_json(folder / FILE_NAME)
    except (CheckpointError, DiskError) as error:
        return StepFolder(folder, None, str(error))
    if content is None:
        return StepFolder(folder, None, f"no {FILE_NAME}" if (folder / "state").is_dir() else "")
    recorded_hash = content.pop("sha256", None)
    try:
        is_intact = recorded_hash == run_json.content_hash(content)
    except RecursionError:
        is_intact = False
    if not is_intact:
        return StepFolder(folder, None, f"{FILE_NAME} is damaged")
    version = content.get("format")
    if version != FORMAT:
        raise CheckpointError(_format_message(folder, version, content.get("writer")))
    if not all(isinstance(content.get(key), kind) for key, kind in REQUIRED_FIELDS.items()):
        return StepFolder(folder, None, f"{FILE_NAME} is incomplete")
    body = cast(Manifest, content)  # its required fields are checked above
    return StepFolder(folder, body, _find_damage(folder, body["files"], check_hashes))


def _format_message(folder: Path, version: object, writer: object) -> str:
    is_older = isinstance(version, int) and version < FORMAT
    renames = "; docs/renames.json lists the new names of its keys and leaves" if is_older else ""
    return (
        f"{folder} has checkpoint format {version}, written by {writer}; this version reads format "
        f"{FORMAT}{renames}; use the version that wrote it, or another run folder"
    )


def _find_damage(folder: Path, files: Mapping[str, FileSeal], check_hashes: bool) -> str:
    """Describes the first file that differs from the manifest; "" if there is none."""
    sizes = _file_sizes(folder)
    for name, entry in files.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != entry["size"]:
            return f"{name} has {sizes[name]} bytes, not {entry['size']}"
    for name, entry in files.items() if check_hashes else ():
        try:
            if seal_file(folder / name) != entry:
                return f"{name} has other content than was saved"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def drop_page_cache(folder: Path) -> None:
    """Drops the page cache of `folder`, so that the next read comes from the disk.

    It has no effect where the operating system lacks `posix_fadvise`.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for name in _file_sizes(folder):
        file = os.open(folder / name, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def _fsync_tree(folder: Path) -> None:
    """Waits until files and folders are on the disk; orbax does that for arrays only."""
    for top, _, names in os.walk(folder, topdown=False):
        for path in (*names, ""):
            file = os.open(Path(top, path), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(file)
            finally:
                os.close(file)


def _file_sizes(folder: Path) -> dict[str, int]:
    """Returns the sizes of the regular files below `folder`; it ignores links."""
    sizes = {}
    for top, _, names in os.walk(folder, followlinks=False):
        for name in sorted(names):
            path = Path(top, name)
            if path.is_file() and not path.is_symlink() and path != folder / FILE_NAME:
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    return sizes
