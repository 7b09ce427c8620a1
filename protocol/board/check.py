"""Lists the contradictions inside run folders: `leaderboard.py RUNS --check`.

Everything here reads files only. `protocol/study/recheck.py` computes costs and runs again.
"""

from collections.abc import Iterable, Sequence

from protocol.board.board import Board
from protocol.records.contradictions import find_contradictions
from protocol.records.duplicates import EQUAL_COPY_REASONS
from protocol.records.run_record import RunRecord, UnreadableResult


def list_contradictions(
    records: Sequence[RunRecord], unreadable: Iterable[UnreadableResult], board: Board
) -> list[str]:
    """Returns a line for each contradiction inside and between runs, sorted.

    Results that cannot be read, runs whose score nothing supports and seeds with several results
    are listed too.
    """
    lines = [f"{folder}: {reason}" for folder, reason in find_contradictions(records)]
    lines += [
        f"{item.folder}: {item.reason}"
        for item in unreadable
        if not item.reason.startswith(EQUAL_COPY_REASONS)
    ]
    lines += [
        f"{record.folder}: it has no {record.evidence.missing}, so that nothing supports its score"
        for record in records
        if record.evidence.missing and not record.external_source
    ]
    rows = [row for comparable_set in board.comparable_sets for row in comparable_set.rows]
    lines += [f"{row.name}: {problem}" for row in rows for problem in row.seed_problems]
    for comparable_set in board.comparable_sets:
        for group in comparable_set.groups:
            lines += group.data_problems
    return sorted(dict.fromkeys(lines))
