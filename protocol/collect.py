"""Everything that a board is made of: run folders below some paths, and files of results from
elsewhere (`docs/results.md`), each as records or as a reason why not.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from errors import ConfigError, DataError
from protocol import elsewhere
from protocol.copies import Found, counted
from protocol.records import Record, Unreadable, read_run
from protocol.untrusted import clean

DEEPEST = 6  # folders inside each other
MOST = 100_000  # folders that are looked into


def collect(results: Sequence[Path]) -> tuple[list[Record], list[Unreadable]]:
    """Records and what could not be one, by their names; ConfigError for a path that is not there.

    A run is counted once, wherever copies of its folder are (`protocol/copies.py`).
    """
    runs: dict[str, list[Found]] = {}
    unreadable: list[Unreadable] = []
    for path, name in sorted(set(_found(results)), key=lambda item: (item[1], str(item[0]))):
        try:
            if path.is_file():
                found, refused = elsewhere.read_results(path, name)
                unreadable += refused
            else:
                found = [read_run(path, name)]
        except DataError as error:
            unreadable.append(Unreadable(name, clean(str(error), 300)))
            continue
        for record in found:
            runs.setdefault(record.run_id, []).append(Found(record, path))
    records: list[Record] = []
    for copies in runs.values():
        kept, told = ([copies[0].record], []) if len(copies) == 1 else counted(copies)
        records += kept
        unreadable += told
    return records, sorted(unreadable)


def _found(results: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    for path in results:
        if not path.exists():
            raise ConfigError(
                f"{clean(str(path))} is not there; give run folders or folders of them"
            )
        name = path.resolve().name
        if path.is_file():
            yield path, clean(name)
            continue
        found = [(folder, clean(str(Path(name) / below))) for folder, below in _folders(path)]
        if not found:
            raise ConfigError(
                f"{clean(str(path))} holds no run folder (one with a run.json, at most {DEEPEST} "
                "folders down); give another"
            )
        yield from found


def _folders(root: Path) -> Iterator[tuple[Path, Path]]:
    """Run folders at or below `root`, with the way from there; no link is followed."""
    left, seen = [(root, Path())], 0
    while left and seen < MOST:
        folder, below = left.pop()
        seen += 1
        try:
            with os.scandir(folder) as entries:
                found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError:
            found = {}
        if "run.json" in found:
            yield folder, below
        elif len(below.parts) < DEEPEST:
            left += [
                (folder / name, below / name)
                for name, is_folder in found.items()
                if is_folder and not name.startswith(".")
            ]
