"""Compares a published board with the board that its run folders give."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from errors import DataError
from protocol.board.board import Board
from protocol.board.export import to_json_tree
from protocol.records.safe_read import (
    MAX_JSONL_BYTES,
    CheckedFields,
    parse_object,
    read_file,
    sanitize,
)

MAX_DIFFERENCES = 100  # Differences that are reported.
RELATIVE_TOLERANCE = 1e-9


def verify_board(path: Path, board: Board) -> list[str]:
    """Returns where the leaderboard.json at `path` differs from the board of the run folders.

    Differences of runs come first, because they explain the others. Then each place of the JSON
    that differs is listed.

    Raises:
        DataError: if the file does not exist or is damaged.
    """
    data = read_file(path.parent, path.name, max_bytes=MAX_JSONL_BYTES)
    if data is None:
        raise DataError(f"{sanitize(str(path))} does not exist; give a leaderboard.json")
    top = parse_object(data, path.name)
    lines = [
        *_diff_runs(top, board),
        *_diff_json(top.tree, json.loads(json.dumps(to_json_tree(board))), ""),
    ]
    n_more = len(lines) - MAX_DIFFERENCES
    return lines[:MAX_DIFFERENCES] + ([f"and {n_more:,} more differences"] if n_more > 0 else [])


def _diff_runs(top: CheckedFields, board: Board) -> Iterator[str]:
    published = {run.text("folder"): run for run in _published_runs(top)}
    rows = [row for comparable_set in board.comparable_sets for row in comparable_set.rows]
    records = {record.folder: record for row in rows for record in row.runs}
    for folder in sorted(published.keys() | records.keys()):
        run, record = published.get(folder), records.get(folder)
        if run is None or record is None:
            yield f"{folder}: only in the {'run folders' if run is None else 'published file'}"
        elif run.text("content_hash") != record.content_hash:
            yield f"{folder}: its files are not those that were published"
        elif run.number("value") != record.value:
            yield f"{folder}: {run.number('value')} was published, its files have {record.value}"


def _published_runs(top: CheckedFields) -> Iterator[CheckedFields]:
    for comparable_set in top.objects("comparable_sets"):
        for group in comparable_set.objects("groups"):
            for row in group.objects("rows"):
                yield from row.objects("runs")


def _diff_json(published: object, rebuilt: object, path: str) -> Iterator[str]:
    """Yields where two JSON trees differ, each place with its path."""
    if isinstance(published, Mapping) and isinstance(rebuilt, Mapping):
        for key in dict.fromkeys([*rebuilt, *published]):
            key_path = f"{path}.{key}" if path else key
            if key not in published or key not in rebuilt:
                source = f"only in {'the run folders' if key in rebuilt else 'the published file'}"
                yield f"{sanitize(key_path)}: {source}"
            else:
                yield from _diff_json(published[key], rebuilt[key], key_path)
    elif isinstance(published, list) and isinstance(rebuilt, list):
        if len(published) != len(rebuilt):
            yield (
                f"{sanitize(path)}: {len(published)} were published, the run folders give "
                f"{len(rebuilt)}"
            )
        for index, (a, b) in enumerate(zip(published, rebuilt, strict=False)):
            yield from _diff_json(a, b, f"{path}[{index}]")
    elif not _is_close(published, rebuilt):
        a, b = (sanitize(json.dumps(x, ensure_ascii=False), 60) for x in (published, rebuilt))
        yield f"{sanitize(path)}: {a} was published, the run folders give {b}"


def _is_close(a: object, b: object) -> bool:
    """Compares values; numbers may differ by the rounding of another machine's libraries."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE)
    return a == b and isinstance(a, bool) == isinstance(b, bool)
