"""Several folders of one run: selects the one that counts, if any.

Equal folders are one run. Of different folders, the longest one counts if it continues all the
others. Otherwise their histories contradict each other, and none counts.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from protocol.records.run_record import RunRecord, UnreadableResult, list_result_files
from protocol.records.safe_read import MAX_JSONL_BYTES, read_file

SAME_RUN, EARLIER_STATE = "it is the same run as", "it is an earlier state of"
EQUAL_COPY_REASONS = (SAME_RUN, EARLIER_STATE)  # Beginnings of reasons that are no contradiction.


class LoadedRun(NamedTuple):
    """A record with the run folder, or the file of external results, that it was read from."""

    record: RunRecord
    path: Path


def deduplicate(copies: Sequence[LoadedRun]) -> tuple[list[RunRecord], list[UnreadableResult]]:
    """Returns at most one record of folders with one run_id, and why the others do not count."""
    distinct = list({c.record.content_hash: c for c in reversed(copies)}.values())[::-1]
    longest = next(
        (c for c in distinct if all(_is_prefix_of(o, c) for o in distinct if o is not c)), None
    )
    if longest is None:
        folders = " and ".join(c.record.folder for c in distinct[:2])
        reason = f"{folders} have one run_id and contradict each other: neither is counted"
        return [], [UnreadableResult(c.record.folder, reason) for c in copies]
    same = f"{SAME_RUN} {longest.record.folder}, which is counted"
    older = f"{EARLIER_STATE} {longest.record.folder}, which is counted"
    uncounted = [
        UnreadableResult(
            c.record.folder, same if c.record.content_hash == longest.record.content_hash else older
        )
        for c in copies
        if c is not longest
    ]
    return [longest.record], uncounted


def _is_prefix_of(older: LoadedRun, later: LoadedRun) -> bool:
    """Returns whether `later` has everything that `older` has, and continues it."""
    a, b = older.record, later.record
    if a.external_source or b.external_source or (a.seed, a.study) != (b.seed, b.study):
        return False
    logs = [_read_logs(older.path, later.path, name) for name in ("metrics.jsonl", "events.jsonl")]
    if not all(new.startswith(old) for old, new in logs) or not all(_same_results(older, later)):
        return False
    if any(len(new) > len(old) for old, new in logs):
        return True
    is_same_run_json = read_file(older.path, "run.json") == read_file(later.path, "run.json")
    return is_same_run_json and a.state in ("unfinished", b.state)


def _read_logs(older: Path, later: Path, name: str) -> tuple[bytes, bytes]:
    """Returns a file of rows of both folders, without a torn last row."""
    old, new = (read_file(path, name, max_bytes=MAX_JSONL_BYTES) or b"" for path in (older, later))
    return old[: old.rfind(b"\n") + 1], new[: new.rfind(b"\n") + 1]


def _same_results(older: LoadedRun, later: LoadedRun) -> Iterator[bool]:
    """Yields for each result at the last step of `older` whether `later` has the same file."""
    step = str(older.record.steps)
    for name in list_result_files(older.path / "eval" / step):
        yield read_file(older.path, "eval", step, name) == read_file(later.path, "eval", step, name)
