"""The points that a law is fitted to, from run folders or from a CSV file, by candidate."""

import csv
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from errors import ConfigError, DataError
from protocol.records.load import load_records
from protocol.records.run_record import RunRecord
from protocol.statistics.scaling_law import Point
from settings.types import did_you_mean

MAX_BYTES = 64 << 20  # Limit of a file of points.
COLUMN_NAMES = {  # Column of a table: the names that are accepted for it.
    "params": ("params", "n", "N"),
    "tokens": ("tokens", "d", "D"),
    "loss": ("loss",),
    "training_flops": ("training_flops",),
    "epochs": ("epochs",),
    "budget": ("budget", "budget_flops"),
}
REQUIRED = ("params", "tokens", "loss")
# Tokens of the first epoch's worth that repetition can add at most, R*_D of arXiv:2305.16264.
REPETITION_CONSTANT = 15.387756


class PointSet(NamedTuple):
    """The points of one candidate."""

    name: str
    points: tuple[Point, ...]
    source: str  # What was read, with its SHA-256 if it is a file.
    head_shares: tuple[float, ...] = ()  # Share of the head in the FLOPs of each point, if known.
    excluded: tuple[str, ...] = ()  # Points that are left out, with the reason.


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


def read_points(path: Path, where: Mapping[str, str], sha256: str = "") -> PointSet:
    """Reads a CSV file with the columns params, tokens and loss.

    Args:
        path: the file.
        where: values that columns must have, such as {"source": "llama_3"}.
        sha256: the SHA-256 that the file must have; blank: any.

    Raises:
        DataError: if the file has another hash, lacks a column or has no number in one.
        ConfigError: if `where` names no column of the file.
    """
    data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    digest = hashlib.sha256(data).hexdigest()
    if sha256 and not digest.startswith(sha256):
        raise DataError(f"{path} has the SHA-256 {digest}, not {sha256}; download it again")
    table = csv.DictReader(io.StringIO(data.decode("utf-8-sig", "replace")))
    header = [*(table.fieldnames or ())]
    columns = {
        key: next((name for name in names if name in header), "")
        for key, names in COLUMN_NAMES.items()
    }
    if missing := [key for key in REQUIRED if not columns[key]]:
        raise DataError(
            f"{path} has no column {missing[0]!r} among {header[:12]}; a table of points has "
            "params, tokens and loss, and may have budget, training_flops and epochs"
        )
    for key in where:
        if key not in header:
            raise ConfigError(f"--where names the column {key!r}; {did_you_mean(key, header)}")
    rows = [row for row in table if all(row[key] == value for key, value in where.items())]
    points = tuple(
        _row_point(path, number, row, columns) for number, row in enumerate(rows, start=1)
    )
    name = " ".join(where.values()) or path.stem
    return PointSet(name, points, f"{path.name} (sha256 {digest[:12]}), {len(points)} rows")


def _row_point(
    path: Path, number: int, row: Mapping[str, str], columns: Mapping[str, str]
) -> Point:
    values = {}
    for key, name in columns.items():
        text = row[name] if name else ""
        if not text and key not in REQUIRED:
            continue
        try:
            values[key] = float(text)
        except (TypeError, ValueError):
            raise DataError(
                f"{path}, row {number}: {name} is {text!r}, must be a number; remove the row"
            ) from None
    return Point(**values)


def read_runs(paths: Sequence[Path], with_head: bool) -> list[PointSet]:
    """Returns the points of run folders by candidate.

    Args:
        paths: run folders, or folders of them.
        with_head: count the parameters of embedding and head in N.

    Raises:
        DataError: if no reported run has a score.
    """
    records, unreadable = load_records(paths)
    by_name: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.is_reported:
            by_name.setdefault(record.study.candidate or record.name, []).append(record)
    key = "active_params" if with_head else "active_non_embedding_params"
    sets = [_candidate_points(name, runs, key) for name, runs in by_name.items()]
    sets = [one for one in sets if one.points]
    if not sets:
        raise DataError(
            f"no reported run with a score below {', '.join(map(str, paths))}; "
            f"{len(unreadable)} results are not readable; give folders of finished runs"
        )
    return sets


def _candidate_points(name: str, runs: Sequence[RunRecord], size_key: str) -> PointSet:
    points, shares, excluded = [], [], []
    for run in runs:
        size, tokens = run.costs.get(size_key), run.costs.get("tokens")
        reason = ""
        if run.value is None or not math.isfinite(run.value):
            reason = f"no finite {run.metric or 'score'}"
        elif run.exclusions:
            reason = run.exclusions[0]
        elif not size or not tokens:
            reason = f"its {size_key} or tokens are unknown"
        if reason or run.value is None or not size or not tokens:
            excluded.append(f"{run.folder}: {reason}")
            continue
        flops, epochs = (run.costs.get(key, 0.0) for key in ("training_flops", "epochs"))
        budget = (run.study.value or 0.0) if run.study.isoflop_curve else 0.0
        points.append(Point(size, tokens, run.value, flops, epochs or 1.0, budget))
        shares.append(run.costs.get("head_share", 0.0))
    metric = runs[0].metric
    source = f"{len(points)} runs, {metric}"
    return PointSet(name, tuple(points), source, tuple(shares), tuple(excluded))
