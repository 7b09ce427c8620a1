"""The points that a law is fitted to, by candidate: those of run folders."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from errors import DataError
from protocol.board.columns import pluralize
from protocol.records.comparability import FROM_SCRATCH, NOT_STATED
from protocol.records.contradictions import mark_contradictions
from protocol.records.fit_file import FittedRun
from protocol.records.load import iter_run_folders, load_records
from protocol.records.run_checkpoints import RunCheckpoints, ScoredCheckpoint, read_checkpoints
from protocol.records.run_record import RunRecord
from protocol.statistics.scaling_law import Point

# Comparability keys in which the points of one law agree. Others, as the batch size, may grow with
# the size.
LAW_KEYS = ("objective", "data", "tokenizer", "metric", "evaluation")
# Tokens of the first epoch's worth that repetition can add at most, R*_D of arXiv:2305.16264.
REPETITION_CONSTANT = 15.387756


class PointSet(NamedTuple):
    """The points of one candidate."""

    name: str
    points: tuple[Point, ...]
    source: str  # What was read, with its SHA-256 if it is a file.
    head_shares: tuple[float, ...] = ()  # Share of the head in the FLOPs of each point, if known.
    excluded: tuple[str, ...] = ()  # Points that are left out, with the reason.
    runs: tuple[FittedRun, ...] = ()  # The runs of the points; empty of a file.
    metric: str = ""  # The metric of the loss; blank: a file does not state it.


def effective_tokens(tokens: float, epochs: float) -> float:
    """Returns the new tokens that repeated ones are worth (arXiv:2305.16264, equation 5).

    Of U unique tokens that are seen 1 + R times, it is U + U R* (1 - exp(-R / R*)).
    """
    if epochs <= 1:
        return tokens
    unique, repeats = tokens / epochs, epochs - 1
    worth = REPETITION_CONSTANT * (1 - math.exp(-repeats / REPETITION_CONSTANT))
    return unique * (1 + worth)


def discount_repetition(points: Sequence[Point]) -> list[Point]:
    """Returns the points with effective tokens in place of repeated ones, as of one epoch."""
    return [
        p._replace(
            tokens=effective_tokens(p.tokens, p.epochs), training_flops=p.compute, epochs=1.0
        )
        for p in points
    ]


def read_runs(
    paths: Sequence[Path], with_head: bool, checkpoint_share: float | None = None
) -> list[PointSet]:
    """Returns the points of run folders by candidate, and by what makes losses comparable.

    Runs that contradict their own files or other runs are left out, as on the board.

    Args:
        paths: run folders, or folders of them.
        with_head: count the parameters of embedding and head in N.
        checkpoint_share: use scored checkpoints after this share of the steps at the full learning
            rate too (`run_checkpoints.py`); None: the last step alone.

    Raises:
        DataError: if no reported run has a score.
    """
    records, unreadable = load_records(paths)
    members = _group_by_law([r for r in mark_contradictions(records) if r.is_reported])
    key = "active_params" if with_head else "active_non_embedding_params"
    folders = {} if checkpoint_share is None else {n: p for p, n in iter_run_folders(paths)}

    def read_late(record: RunRecord) -> RunCheckpoints:
        path = folders.get(record.folder)
        if path is None or checkpoint_share is None:
            return RunCheckpoints((), ())
        return read_checkpoints(path, record, checkpoint_share)

    sets = [_candidate_points(name, runs, key, read_late) for (name, *_), runs in members.items()]
    sets = [one for one in sets if one.points]
    if not sets:
        raise DataError(
            f"no reported run with a score below {', '.join(map(str, paths))}; "
            f"{len(unreadable)} results are not readable; give folders of finished runs"
        )
    return sets


def _group_by_law(records: Sequence[RunRecord]) -> dict[tuple[str, ...], list[RunRecord]]:
    """Returns the runs of each candidate whose losses are comparable.

    A run without a score, which has no evaluation either, is listed with the first of them.
    """
    members: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: r.value is None):
        name = record.study.candidate or record.name
        key = (name, *(record.keys[k] for k in LAW_KEYS))
        if record.value is None:
            key = next((other for other in members if other[0] == name), key)
        members.setdefault(key, []).append(record)
    return members


def _candidate_points(
    name: str,
    runs: Sequence[RunRecord],
    size_key: str,
    read_late: Callable[[RunRecord], RunCheckpoints],
) -> PointSet:
    points, shares, excluded, fitted = [], [], [], []
    for number, run in enumerate(runs, 1):
        size, tokens = run.costs.get(size_key), run.costs.get("tokens")
        reason = ""
        if run.value is None or not math.isfinite(run.value):
            reason = f"no finite {run.metric or 'score'}"
        elif run.exclusions:
            reason = run.exclusions[0]
        elif (source := run.keys["init_from"]) not in (FROM_SCRATCH, NOT_STATED):
            reason = f"it starts from {source}, whose tokens are not counted in its D"
        elif not size or not tokens:
            reason = f"its {size_key} or tokens are unknown"
        if reason or run.value is None or not size or not tokens:
            excluded.append(f"{run.folder}: {reason}")
            continue
        flops, epochs = (run.costs.get(key, 0.0) for key in ("training_flops", "epochs"))
        budget = (run.study.value or 0.0) if run.study.isoflop_curve else 0.0
        late, late_excluded = read_late(run)
        end = Point(size, tokens, run.value, flops, epochs or 1.0, budget, number if late else 0)
        points += [end, *(_late_point(end, checkpoint) for checkpoint in late)]
        excluded += late_excluded
        shares += [run.costs.get("head_share", 0.0)] * (1 + len(late))
        fitted.append(FittedRun(run.folder, run.run_id, run.content_hash))
    metric = runs[0].metric
    n_late = len(points) - len(fitted)
    source = f"{pluralize(len(fitted), 'run')}, {metric}"
    if n_late:
        source = f"{pluralize(len(fitted), 'run')} and {n_late} of their checkpoints, {metric}"
    return PointSet(
        *(name, tuple(points), source, tuple(shares), tuple(excluded)),
        runs=tuple(fitted),
        metric=metric,
    )


def _late_point(end: Point, checkpoint: ScoredCheckpoint) -> Point:
    """Returns the point of a checkpoint of the run that ends at `end`."""
    return end._replace(
        tokens=end.tokens * checkpoint.share,
        loss=checkpoint.value,
        training_flops=end.training_flops * checkpoint.share,
        epochs=end.epochs * checkpoint.share,
        budget=0.0,
        before_cooldown=int(checkpoint.before_cooldown),
    )
