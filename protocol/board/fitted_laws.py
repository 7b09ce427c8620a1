"""Laws that `python -m protocol.fit` fitted to the runs of a board: `leaderboard.py --fit=JSON`.

A fit is shown only if it was made from the runs of the board as they are: each run that it names is
here with the same content hash, and each run of the candidate with a score is in it. The numbers
are those of the file; the board does not compute them again. One line says why a fit is refused.
"""

from collections.abc import Sequence
from pathlib import Path

from protocol.board.board import Board, ComparableSet
from protocol.board.columns import pluralize
from protocol.records.fit_file import FIT_AGAIN, CandidateFit, FittedLaw, read_fit_file
from protocol.records.run_record import RunRecord


def add_fits(board: Board, path: Path) -> Board:
    """Returns the board with the laws in the fit.json at `path`, and why others are refused.

    Raises:
        DataError: if the file does not exist, is damaged or has another format.
    """
    file = read_fit_file(path)
    records = [_records(comparable_set) for comparable_set in board.comparable_sets]
    laws: dict[int, list[FittedLaw]] = {}
    problems = []
    for report in file.reports:
        indices = {i for i, by_id in enumerate(records) if by_id.keys() & report.runs.keys()}
        runs = {run_id: run for i in indices for run_id, run in records[i].items()}
        if problem := _find_problem(report, runs, len(indices)):
            problems.append(f"{file.name}: the fit of {report.name} {problem}")
        else:
            laws.setdefault(min(indices), []).extend(report.laws)
    return board._replace(
        comparable_sets=tuple(
            s._replace(laws=tuple(laws.get(i, ()))) for i, s in enumerate(board.comparable_sets)
        ),
        fit_source=f"{file.name} (sha256 {file.sha256[:12]})",
        fit_problems=tuple(problems),
    )


def _find_problem(report: CandidateFit, runs: dict[str, RunRecord], n_sets: int) -> str:
    """Returns why a report is not of the runs of a board, by run_id; blank if it is."""
    if not report.runs:
        return "is of a file and not of run folders; a board shows the laws of its own runs"
    for run_id, fitted in report.runs.items():
        if (record := runs.get(run_id)) is None:
            return f"uses {fitted.folder}, which this board does not have or count; {FIT_AGAIN}"
        if record.content_hash != fitted.content_hash:
            return f"uses {fitted.folder}, whose files have changed since; {FIT_AGAIN}"
        if record.exclusions:
            return f"uses {fitted.folder}, which is excluded: {record.exclusions[0]}"
    if n_sets > 1:
        return f"uses runs of {n_sets} sets that are not comparable; fit each of them"
    missing = [
        record.folder
        for run_id, record in runs.items()
        if run_id not in report.runs
        and (record.study.candidate or record.name) == report.name
        and record.value is not None
        and not record.exclusions
    ]
    if missing:
        count = pluralize(len(missing), "run")
        return f"lacks {count} of the candidate, such as {missing[0]}; {FIT_AGAIN}"
    return ""


def _records(comparable_set: ComparableSet) -> dict[str, RunRecord]:
    return {run.run_id: run for row in comparable_set.rows for run in row.runs}


def law_sentences(laws: Sequence[FittedLaw], source: str) -> list[str]:
    """Returns the laws of a comparable set in words, with where they come from."""
    if not laws:
        return []
    text = f"These laws are those of {source}, which names these runs by their hashes."
    return [*(law.sentence for law in laws), text]
