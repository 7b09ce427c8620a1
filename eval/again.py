"""Evaluates a checkpoint again and compares the scores with those that its run folder records.

A score that was edited is found in this way: the checkpoint gives another one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from errors import DataError
from eval import harness
from eval.task import EvalContext
from training.run.atomic_io import read_json
from training.run.folder import RunFolder

RELATIVE_TOLERANCE = 1e-4  # Of other devices and libraries; edits that matter are larger.
# Scores of speed and memory, which differ between two evaluations.
MEASURED_NAMES = ("tokens_per_second", "ms_per_token", "seconds", "state_bytes")


class ScorePair(NamedTuple):
    """A score as it is recorded, and as the checkpoint gives it."""

    name: str
    recorded: float | str | None  # None: it is not recorded.
    again: float | str | None  # None: the evaluation does not give it.

    @property
    def differs(self) -> bool:
        """Whether the two values are not the same score."""
        if any(name in self.name for name in MEASURED_NAMES):
            return False
        a, b = self.recorded, self.again
        if isinstance(a, float) and isinstance(b, float):
            is_same = math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-9)
            return not (is_same or (math.isnan(a) and math.isnan(b)))
        return a != b

    def __str__(self) -> str:
        recorded, again = (
            f"{x:.6g}" if isinstance(x, float) else "nothing" if x is None else x
            for x in (self.recorded, self.again)
        )
        note = "   differs" if self.differs else ""
        return f"{self.name:40}recorded {recorded}, again {again}{note}"


def evaluate_again(
    ctx: EvalContext, task_names: Sequence[str], run: RunFolder, step: int
) -> list[ScorePair]:
    """Returns each score as recorded and as evaluated now; nothing is written.

    Raises:
        DataError: if a task has no recorded result.
    """
    pairs = []
    for name in task_names:
        # Read as it is: a record that was edited is what this is to compare.
        recorded = read_json(run.file_path("eval", str(step), f"{name}.json"))
        if recorded is None:
            raise DataError(
                f"{run.path}/eval/{step}/{name}.json does not exist, so that nothing can be "
                "compared; evaluate without --again first"
            )
        old = _scores(recorded["scores"])
        settings = harness.with_recorded_limit(ctx.settings, recorded["scores"])
        new = _scores(harness.run_task(name, ctx._replace(settings=settings), step)["scores"])
        pairs += [ScorePair(key, old.get(key), new.get(key)) for key in {**old, **new}]
    return pairs


def _scores(items: Sequence[dict[str, float | str]]) -> dict[str, float | str]:
    """Returns scores by name; whole numbers are floats."""
    return {
        str(item["name"]): item["value"] if isinstance(item["value"], str) else float(item["value"])
        for item in items
    }


def check_same(pairs: Sequence[ScorePair], run: RunFolder) -> None:
    """Accepts scores that are the same again.

    Raises:
        DataError: if a score differs, with both values of the first one.
    """
    if differing := [pair for pair in pairs if pair.differs]:
        first = differing[0]
        raise DataError(
            f"{len(differing)} of {len(pairs)} scores of {run.path} differ from those of its "
            f"checkpoint, as {first.name}: recorded {first.recorded}, again {first.again}; the "
            "record was edited, or made by other code"
        )
