"""Seals of the files of a run: the size and the hash of what was written, and what differs now.

status.json seals the logs when a run starts and when it ends, and the manifest of a checkpoint
seals metrics.jsonl as it was at that step. A log may have grown since; what is sealed must be its
beginning.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from errors import CheckpointError
from settings import run_json
from settings.json_types import JsonObject
from training.run.atomic_io import FileSeal, JsonlWriter, read_json, read_jsonl
from training.run.run_paths import safe_join
from training.run.strict_json import decode_json, encode_json

METRICS_FILE, EVENTS_FILE = "metrics.jsonl", "events.jsonl"
CHUNK_BYTES = 2**20


def seal_file(path: Path) -> FileSeal:
    """Returns the seal of a file as it is; one that does not exist is empty."""
    if not path.is_file() or path.is_symlink():
        return {"size": 0, "sha256": hashlib.sha256().hexdigest()}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": digest}


def find_damage(path: Path, seal: object, *, may_grow: bool) -> str:
    """Returns how a file differs from its seal, "" if it does not.

    Args:
        path: the file.
        seal: what was sealed; an object that is no seal is damage as well.
        may_grow: whether the file may have more bytes than the seal.
    """
    if not isinstance(seal, Mapping) or not isinstance(size := seal.get("size"), int):
        return f"{path.name} has no seal"
    actual = path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    if actual < size or (actual > size and not may_grow):
        return f"{path.name} has {actual} bytes, {size} were written"
    digest, remaining = hashlib.sha256(), size
    if remaining:
        with path.open("rb") as file:
            while remaining and (chunk := file.read(min(remaining, CHUNK_BYTES))):
                digest.update(chunk)
                remaining -= len(chunk)
    if digest.hexdigest() != seal.get("sha256"):
        return f"{path.name} has other content than was written"
    return ""


def find_json_damage(path: Path) -> str:
    """Returns how a sealed JSON file differs from what was written, "" if it does not."""
    try:
        content = read_json(path)
    except CheckpointError as error:
        return str(error)
    if content is None:
        return f"{path.name} is missing"
    is_intact = run_json.is_intact(content, is_sealed=True)
    return "" if is_intact else f"{path.name} has other content than was written"


def find_run_damage(folder: Path, record: JsonObject) -> list[str]:
    """Returns what is damaged in a finished run besides status.json and checkpoints.

    It is nothing in a run without seals, which an older version wrote.

    Args:
        folder: the run folder.
        record: the content of its run.json.
    """
    if not run_json.is_run_sealed(record):
        return []
    status = read_json(folder / "status.json") or {}
    seals = status.get("files") or {}
    problems = [
        find_damage(folder / METRICS_FILE, seals.get(METRICS_FILE), may_grow=False),
        find_damage(folder / EVENTS_FILE, seals.get(EVENTS_FILE), may_grow=True),
    ]
    results = folder / "eval" / str(status.get("step"))
    problems += [find_json_damage(results / name) for name in result_names(results)]
    return [problem for problem in problems if problem]


def find_status_damage(folder: Path, record: JsonObject) -> str:
    """Returns how status.json of the run with this run.json differs from what was written."""
    return find_json_damage(folder / "status.json") if run_json.is_run_sealed(record) else ""


def find_log_damage(folder: Path, seals: Mapping[str, object]) -> list[tuple[Path, str]]:
    """Returns the logs of a run that are damaged, each with the problem.

    Args:
        folder: the run folder.
        seals: what is known of each log by its name; a seal of None leaves only its form to check.
    """
    problems = []
    for name in (METRICS_FILE, EVENTS_FILE):
        path, problem = safe_join(folder, name), ""
        if (file_seal := seals.get(name)) is not None:
            problem = find_damage(path, file_seal, may_grow=True)
        try:
            read_jsonl(path)
        except CheckpointError as error:
            problem = problem or str(error)
        if problem:
            problems.append((path, problem))
    return problems


def result_names(folder: Path) -> list[str]:
    """Returns the names of the result files in eval/STEP, sorted."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    names = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".json")]
    return sorted(name for name in names if not name.startswith("."))


def damaged_path(path: Path, attempt: int) -> Path:
    """Returns where the damaged version of a log goes that attempt `attempt` found."""
    return path.with_name(f"{path.stem}.damaged-{attempt}{path.suffix}")


def salvage_rows(path: Path, attempt: int) -> Path:
    """Moves a damaged log away and writes the rows that can still be read; returns its new path.

    Args:
        path: the log.
        attempt: the number of this start of the run, part of the new name.
    """
    damaged = damaged_path(path, attempt)
    data = path.read_bytes() if path.is_file() else b""
    if path.exists():
        os.replace(path, damaged)
    rows = []
    for line in data.decode(errors="replace").split("\n"):
        try:
            row = decode_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and type(row.get("step", 0)) is int:
            rows.append(row)
    writer = JsonlWriter(path)
    for row in rows:
        writer.append(row)
    writer.sync()
    writer.close()
    return damaged


def with_hash(content: Mapping[str, object]) -> JsonObject:
    """Returns `content` in JSON's types, with its hash."""
    return run_json.add_hash(decode_json(encode_json(content)))
