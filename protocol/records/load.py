"""Loads all that a board shows: run folders below some paths, and files of external results.

Each becomes a record, or a reason why it cannot be one (docs/results.md).
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from errors import ConfigError, DataError
from protocol.records import external_results
from protocol.records.duplicates import LoadedRun, deduplicate
from protocol.records.plan_file import FILE_NAME, Plans, read_plans
from protocol.records.run_record import RunRecord, UnreadableResult, read_run
from protocol.records.safe_read import sanitize

MAX_FOLDER_DEPTH = 6  # Levels of folders below a path in which run folders are folders.
MAX_FOLDERS = 100_000  # Folders that are searched.


def load_records(paths: Sequence[Path]) -> tuple[list[RunRecord], list[UnreadableResult]]:
    """Returns the records below `paths` and the results that could not be read, sorted by name.

    Several folders of one run count once (`protocol/records/duplicates.py`).

    Raises:
        ConfigError: if a path does not exist, or has no run folder in it.
    """
    runs: dict[str, list[LoadedRun]] = {}
    unreadable: list[UnreadableResult] = []
    plans: dict[Path, Plans] = {}
    named_paths = set(_iter_result_paths(paths))
    for path, name in sorted(named_paths, key=lambda item: (item[1], str(item[0]))):
        try:
            if path.is_file():
                loaded, refused = external_results.read_external_results(path, name)
                unreadable += refused
            else:
                folder = path.parent
                if folder not in plans:
                    plans[folder] = _read_plans(folder, name, unreadable)
                loaded = [read_run(path, name, plans[folder])]
        except DataError as error:
            unreadable.append(UnreadableResult(name, sanitize(str(error), 300)))
            continue
        for record in loaded:
            runs.setdefault(record.run_id, []).append(LoadedRun(record, path))
    records: list[RunRecord] = []
    for copies in runs.values():
        counted, uncounted = ([copies[0].record], []) if len(copies) == 1 else deduplicate(copies)
        records += counted
        unreadable += uncounted
    return records, sorted(unreadable)


def _read_plans(folder: Path, name: str, unreadable: list[UnreadableResult]) -> Plans:
    """Returns the plans in a folder; a file that cannot be read is added to `unreadable`."""
    try:
        return read_plans(folder)
    except DataError as error:
        shown = sanitize(str(Path(name).parent / FILE_NAME))
        reason = f"{sanitize(str(error), 300)}; what its runs declared cannot be checked"
        unreadable.append(UnreadableResult(shown, reason))
        return {}


def iter_run_folders(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Returns the run folders at or below `paths`, each with the name to show, sorted by name."""
    folders = {item for item in _iter_result_paths(paths) if item[0].is_dir()}
    return sorted(folders, key=lambda item: (item[1], str(item[0])))


def _iter_result_paths(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yields files, and the run folders below folders, each with the name to show.

    Raises:
        ConfigError: if a path does not exist, or has no run folder in it.
    """
    for path in paths:
        if not path.exists():
            raise ConfigError(
                f"{sanitize(str(path))} does not exist; give run folders or folders of them"
            )
        name = path.resolve().name
        if path.is_file():
            yield path, sanitize(name)
            continue
        folders = [
            (folder, sanitize(str(Path(name) / below))) for folder, below in _iter_run_folders(path)
        ]
        if not folders:
            raise ConfigError(
                f"{sanitize(str(path))} has no run folder in it (one with a run.json, at most "
                f"{MAX_FOLDER_DEPTH} folders down); give another"
            )
        yield from folders


def _iter_run_folders(root: Path) -> Iterator[tuple[Path, Path]]:
    """Yields run folders at or below `root`, with their relative paths; follows no link."""
    pending, n_searched = [(root, Path())], 0
    while pending and n_searched < MAX_FOLDERS:
        folder, below = pending.pop()
        n_searched += 1
        try:
            with os.scandir(folder) as entries:
                is_folder = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError:
            is_folder = {}
        if "run.json" in is_folder:
            yield folder, below
        elif len(below.parts) < MAX_FOLDER_DEPTH:
            pending += [
                (folder / name, below / name)
                for name in is_folder
                if is_folder[name] and not name.startswith(".")
            ]
