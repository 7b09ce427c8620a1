"""Reads metrics.jsonl as a series: one row per step, without the rows that a resume superseded."""

from pathlib import Path

from errors import CheckpointError
from settings.json_types import JsonObject
from training.run.atomic_io import read_jsonl
from training.run.resume_check import format_event
from training.run.strict_json import from_json_number


def read_metrics(path: Path) -> list[JsonObject]:
    """Returns the series in a metrics.jsonl: one row per step, in increasing order of steps.

    Rows at the same step are merged, also those of two attempts: the later one resumed at that
    step, so both describe the same state. A row at an earlier step than the row before it, or a row
    with `resumed`, removes all rows of later steps.

    Raises:
        CheckpointError: if a row has no step.
    """
    series: list[JsonObject] = []
    for row in read_jsonl(path):
        step = row.get("step")
        if not isinstance(step, int):
            raise CheckpointError(f"{path} has a row without a step: {format_event(row)}")
        while series and series[-1]["step"] > step:
            series.pop()
        if row.get("resumed"):
            continue
        row = {key: from_json_number(value) for key, value in row.items()}
        if series and series[-1]["step"] == step:
            series[-1] |= row
        else:
            series.append(row)
    return series
