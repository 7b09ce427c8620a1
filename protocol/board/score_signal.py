"""Signal and noise of each score of a group: which of them can separate its candidates at all.

`protocol/statistics/signal.py` has the definition. The candidates are the rows that have a mean and
are compared; the noise is that of their seeds, and beside it that of the last evaluations of a run.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from errors import DataError
from formatting import format_percent
from protocol.board.columns import metric_label
from protocol.board.rows import BoardRow
from protocol.records.metrics import is_quality
from protocol.records.series import VALIDATION_PREFIX
from protocol.statistics.signal import SignalToNoise, signal_to_noise, trend_residuals

SPLIT_PREFIXES = ("test/", VALIDATION_PREFIX)
MIN_LATE_SCORES = 4  # Last evaluations of a run that a scatter about their trend needs.
SIGNAL_COLUMNS = {
    "signal": "The largest difference between the means of candidates, over the mean.",
    "noise": "Standard deviation of seeds over the mean.",
    "ratio": "Signal over noise.",
    "without a difference": "Expected ratio of candidates that do not differ.",
    "p": "F test of equal means.",
    "last evaluations": "Standard deviation of the last evaluations of a run about their trend, "
    "over the mean.",
}


class ScoreSignal(NamedTuple):
    """The signal and the noise of a score, or why it has none."""

    score: str
    result: SignalToNoise | None
    problem: str = ""
    # Relative standard deviation of the last evaluations of a run about their trend, on the
    # validation split; None: no run logged enough of them.
    late_noise: float | None = None

    @property
    def cells(self) -> list[str]:
        """The texts of `SIGNAL_COLUMNS`; blank where a number is not known."""
        if (r := self.result) is None:
            return [""] * len(SIGNAL_COLUMNS)
        late = math.nan if self.late_noise is None else self.late_noise
        shares = [format_percent(x) if math.isfinite(x) else "" for x in (r.signal, r.noise, late)]
        null = f"{r.null_ratio:.3g}" if math.isfinite(r.null_ratio) else ""
        return [*shares[:2], f"{r.ratio:.3g}", null, f"{r.p:.2g}", shares[2]]

    @property
    def json_tree(self) -> dict[str, object]:
        """The signal as leaderboard.json has it."""
        tree: dict[str, object] = {"score": self.score, "late_noise": self.late_noise}
        if (r := self.result) is None:
            return tree | {"problem": self.problem}
        return tree | {
            "signal": _finite(r.signal),
            "noise": _finite(r.noise),
            "ratio": r.ratio,
            "null_ratio": _finite(r.null_ratio),
            "p": r.p,
            "candidates": r.n_candidates,
            "df": r.df,
        }


def group_signals(rows: Sequence[BoardRow], *, is_curve: bool) -> tuple[ScoreSignal, ...]:
    """Returns the signals of the metric and of all other scores of quality, the metric first.

    Args:
        rows: the rows of a group.
        is_curve: whether the rows are points of isoFLOP curves, which differ in size.
    """
    members = comparable_rows(rows)
    if len(members) < 2:
        return ()
    metric = members[0].first_run.metric
    if is_curve:
        problem = "it is that of candidates at one size, and the rows of a curve differ in size"
        return (ScoreSignal(metric, None, problem),)
    others = {n for row in members for n in row.scores if is_quality(n)} - {metric}
    names = [metric, *sorted(n for n in others if not n.startswith(VALIDATION_PREFIX))]
    return tuple(_score_signal(name, members) for name in names)


def comparable_rows(rows: Sequence[BoardRow]) -> list[BoardRow]:
    """Returns the rows with a mean that are compared and are no copies."""
    return [r for r in rows if r.sample.mean is not None and not r.exclusions and not r.copy_of]


def run_scores(row: BoardRow, score: str) -> list[float]:
    """Returns the values of a score over the runs of a row; none if it is not pooled over them."""
    if score not in row.scores:
        return []
    values = [run.scores[score][0] for run in row.runs if score in run.scores]
    return [value for value in values if math.isfinite(value)]


def has_one_origin(rows: Sequence[BoardRow], score: str) -> bool:
    """Returns whether one version of a task gave a score, on one part of its split."""
    runs = [run for row in rows for run in row.runs if score in run.scores]
    return len({(run.scores[score][1], run.parts.get(score, "")) for run in runs}) <= 1


def signal_sentences(signals: Sequence[ScoreSignal]) -> list[str]:
    """Returns what the signals say of the metric, and which other score has the most."""
    if not signals:
        return []
    metric, *others = signals
    label = metric_label(metric.score)
    if metric.result is None:
        return [f"{label} has no signal to noise ratio: {metric.problem}."]
    r = metric.result
    null = f"; without any difference it would be {r.null_ratio:.2g} on average"
    sentences = [
        f"The signal to noise ratio of {label} is {r.ratio:.3g}: the means of candidates are up to "
        f"{100 * r.signal:.2g} % apart, and seeds scatter by {100 * r.noise:.2g} % (F test of "
        f"equal means, p={r.p:.2g}){null * math.isfinite(r.null_ratio)}."
    ]
    if metric.late_noise is not None:
        sentences.append(
            f"The last evaluations of a run scatter by {100 * metric.late_noise:.2g} % about their "
            "trend, on the validation split."
        )
    if ratios := {s.score: s.result.ratio for s in others if s.result}:
        best = max(ratios, key=lambda name: ratios[name])
        subject = f"Of {len(ratios)} further scores, {best} has the highest ratio,"
        if len(ratios) == 1:
            subject = f"The further score {best} has a ratio of"
        sentences.append(f"{subject} {ratios[best]:.3g}.")
    return sentences


def _score_signal(score: str, rows: Sequence[BoardRow]) -> ScoreSignal:
    late = _late_noise(score, rows)
    if not has_one_origin(rows, score):
        problem = "several versions of its task, or several parts of a split, gave it"
        return ScoreSignal(score, None, problem, late)
    try:
        values = [run_scores(row, score) or _metric_values(row, score) for row in rows]
        return ScoreSignal(score, signal_to_noise(values), late_noise=late)
    except DataError as error:
        return ScoreSignal(score, None, str(error), late)


def _metric_values(row: BoardRow, score: str) -> list[float]:
    """Returns the values of the metric of a row, which external results have without scores."""
    return [*row.sample.values] if score == row.first_run.metric else []


def _late_noise(score: str, rows: Sequence[BoardRow]) -> float | None:
    """Returns the relative scatter of the last evaluations of the runs, pooled over them."""
    split, _, base = score.partition("/")
    name = f"{VALIDATION_PREFIX}{base}" if f"{split}/" in SPLIT_PREFIXES else score
    series = [run.late_scores.get(name, ()) for row in rows for run in row.runs]
    points = [np.array(one).T for one in series if len(one) >= MIN_LATE_SCORES]
    if not points:
        return None
    squares = sum(float((trend_residuals(*one) ** 2).sum()) for one in points)
    df = sum(one.shape[1] - 2 for one in points)
    mean = float(np.mean([one[1].mean() for one in points]))
    return _finite(math.sqrt(squares / df) / abs(mean)) if mean else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
