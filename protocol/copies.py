"""Several folders of one run: which of them is counted, if any.

Equal ones are one run. Of different ones the further is counted if it goes on from where the others
end; else their histories contradict each other, and none is.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from protocol.records import Record, Unreadable, result_files
from protocol.untrusted import ROWS, read


class Found(NamedTuple):
    """A record, and the folder that it was read from; a result from elsewhere has none."""

    record: Record
    path: Path


def counted(copies: Sequence[Found]) -> tuple[list[Record], list[Unreadable]]:
    """Of folders with one run_id, by name: at most one record, and what is said of the others."""
    apart = list({c.record.evidence: c for c in reversed(copies)}.values())[::-1]
    best = next((c for c in apart if all(_begins(o, c) for o in apart if o is not c)), None)
    if best is None:
        folders = " and ".join(c.record.folder for c in apart[:2])
        why = f"{folders} say they are one run and contradict each other: neither is counted"
        return [], [Unreadable(c.record.folder, why) for c in copies]
    same = f"it is the same run as {best.record.folder}, which is counted"
    older = f"it is an earlier state of {best.record.folder}, which is counted"
    told = [
        Unreadable(c.record.folder, same if c.record.evidence == best.record.evidence else older)
        for c in copies
        if c is not best
    ]
    return [best.record], told


def _begins(older: Found, later: Found) -> bool:
    """Whether `later` holds all that `older` does, and goes on from there."""
    a, b = older.record, later.record
    if a.source or b.source or (a.seed, a.study) != (b.seed, b.study):
        return False
    logs = [_log(older.path, later.path, name) for name in ("metrics.jsonl", "events.jsonl")]
    if not all(new.startswith(old) for old, new in logs) or not all(_kept(older, later)):
        return False
    if any(len(new) > len(old) for old, new in logs):
        return True
    same = read(older.path, "run.json") == read(later.path, "run.json")
    return same and a.state in ("unfinished", b.state)


def _log(older: Path, later: Path, name: str) -> tuple[bytes, bytes]:
    """A file of rows in both, without a torn last row."""
    old, new = (read(path, name, limit=ROWS) or b"" for path in (older, later))
    return old[: old.rfind(b"\n") + 1], new[: new.rfind(b"\n") + 1]


def _kept(older: Found, later: Found) -> Iterator[bool]:
    """Of each result at the end of `older`, whether `later` has it too."""
    step = str(older.record.steps)
    for name in result_files(older.path / "eval" / step):
        yield read(older.path, "eval", step, name) == read(later.path, "eval", step, name)
