"""Whether a published board is what its run folders show: evidence and numbers, row by row."""

from collections.abc import Iterator
from pathlib import Path

from errors import DataError
from protocol.board import Board
from protocol.untrusted import ROWS, Fields, clean, parsed, read


def changed(path: Path, board: Board) -> list[str]:
    """What in the leaderboard.json at `path` the run folders behind `board` do not bear out."""
    data = read(path.parent, path.name, limit=ROWS)
    if data is None:
        raise DataError(f"{clean(str(path))} is not there; give a leaderboard.json")
    stated = {run.text("folder"): run for run in _runs(parsed(data, path.name))}
    found = {r.folder: r for family in board.families for row in family.rows for r in row.runs}
    lines = []
    for folder in sorted(stated.keys() | found.keys()):
        run, record = stated.get(folder), found.get(folder)
        if run is None or record is None:
            lines.append(f"{folder}: only in the {'run folders' if run is None else 'file'}")
        elif run.text("evidence") != record.evidence:
            lines.append(f"{folder}: its files are not those that were published")
        elif run.number("value") != record.value:
            lines.append(f"{folder}: {run.number('value')} was published, it shows {record.value}")
    return lines


def _runs(top: Fields) -> Iterator[Fields]:
    for family in top.objects("families"):
        for group in family.objects("groups"):
            for row in group.objects("rows"):
                yield from row.objects("runs")
