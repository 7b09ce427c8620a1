"""Whether a published board is what its run folders show: made again, and compared as a whole."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from errors import DataError
from protocol.board import Board
from protocol.render import tree
from protocol.untrusted import ROWS, Fields, clean, parsed, read

MOST = 100  # differences that are told
ROUNDING = 1e-9


def changed(path: Path, board: Board) -> list[str]:
    """What in the leaderboard.json at `path` the run folders behind `board` do not bear out.

    Runs come first, whose files tell why; then every place at which the board itself differs.
    """
    data = read(path.parent, path.name, limit=ROWS)
    if data is None:
        raise DataError(f"{clean(str(path))} is not there; give a leaderboard.json")
    top = parsed(data, path.name)
    lines = [*_runs(top, board), *_differing(top.tree, json.loads(json.dumps(tree(board))), "")]
    more = len(lines) - MOST
    return lines[:MOST] + ([f"and {more:,} more differences"] if more > 0 else [])


def _runs(top: Fields, board: Board) -> Iterator[str]:
    stated = {run.text("folder"): run for run in _stated(top)}
    found = {r.folder: r for family in board.families for row in family.rows for r in row.runs}
    for folder in sorted(stated.keys() | found.keys()):
        run, record = stated.get(folder), found.get(folder)
        if run is None or record is None:
            yield f"{folder}: only in the {'run folders' if run is None else 'file'}"
        elif run.text("evidence") != record.evidence:
            yield f"{folder}: its files are not those that were published"
        elif run.number("value") != record.value:
            yield f"{folder}: {run.number('value')} was published, it shows {record.value}"


def _stated(top: Fields) -> Iterator[Fields]:
    for family in top.objects("families"):
        for group in family.objects("groups"):
            for row in group.objects("rows"):
                yield from row.objects("runs")


def _differing(stated: Any, shown: Any, path: str) -> Iterator[str]:
    """Where two trees of JSON differ, each place by its path."""
    if isinstance(stated, Mapping) and isinstance(shown, Mapping):
        for key in dict.fromkeys([*shown, *stated]):
            place = f"{path}.{key}" if path else key
            if key not in stated or key not in shown:
                where = "run folders" if key in shown else "file"
                yield f"{clean(place)}: only in what the {where} says"
            else:
                yield from _differing(stated[key], shown[key], place)
    elif isinstance(stated, list) and isinstance(shown, list):
        if len(stated) != len(shown):
            yield f"{clean(path)}: {len(stated)} were published, the run folders show {len(shown)}"
        for index, (a, b) in enumerate(zip(stated, shown, strict=False)):
            yield from _differing(a, b, f"{path}[{index}]")
    elif not _same(stated, shown):
        texts = (clean(json.dumps(x, ensure_ascii=False), 60) for x in (stated, shown))
        yield "{}: {} was published, the run folders show {}".format(clean(path), *texts)


def _same(a: Any, b: Any) -> bool:
    """Numbers up to the rounding of another machine's libraries."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=ROUNDING)
    return a == b and isinstance(a, bool) == isinstance(b, bool)
