"""External results: JSON that states what a run folder would show (docs/results.md).

Nothing in them can be checked. Their rows are marked self-reported: they are shown beside the
others and never ranked with them.
"""

import dataclasses
import hashlib
import math
from collections.abc import Collection
from pathlib import Path

from errors import DataError
from protocol.board.columns import AXIS_COLUMN_ALIASES, TIME_COLUMNS
from protocol.records.comparability import COMPARABILITY_KEYS, NOT_STATED
from protocol.records.run_record import RunRecord, UnreadableResult
from protocol.records.safe_read import CheckedFields, parse_object, read_file, sanitize
from protocol.records.series import COST_COLUMNS
from protocol.records.study_record import parse_study

FORMAT = 2
MAX_RESULTS = 1000  # Results in a file.
MAX_VALUES = 100  # Values of a result.
TOP_LEVEL_KEYS = ("format", "source", "results")
RESULT_KEYS = (
    *("name", "architecture", "metric", "values", "keys", "costs", "scores"),
    *("study", "command", "steps", "hardware"),
)


def read_external_results(path: Path, name: str) -> tuple[list[RunRecord], list[UnreadableResult]]:
    """Returns a record for each value in the file at `path`, and each result that is wrong.

    Raises:
        DataError: if the file as a whole cannot be read.
    """
    data = read_file(path.parent, path.name)
    if data is None:
        raise DataError("the file does not exist any more")
    top = parse_object(data, name)
    _reject_unknown_keys(top, TOP_LEVEL_KEYS)
    if top.count("format") != FORMAT:
        raise DataError(f"{name} has format {top.count('format')}, this board reads {FORMAT}")
    source = _required_text(top, "source")
    results = top.objects("results")
    if len(results) > MAX_RESULTS:
        raise DataError(f"{name} has {len(results)} results, at most {MAX_RESULTS} are read")
    digest = hashlib.sha256(data).hexdigest()
    records: list[RunRecord] = []
    unreadable: list[UnreadableResult] = []
    for index, result in enumerate(results):
        try:
            records += _records(result, f"{name}#{index}", source, digest)
        except DataError as error:
            unreadable.append(UnreadableResult(f"{name}#{index}", sanitize(str(error), 300)))
    return records, unreadable


def _records(result: CheckedFields, name: str, source: str, digest: str) -> list[RunRecord]:
    _reject_unknown_keys(result, RESULT_KEYS)
    keys, costs = result.section("keys"), result.section("costs")
    _reject_unknown_keys(keys, COMPARABILITY_KEYS)
    _reject_unknown_keys(costs, COST_COLUMNS)
    study = parse_study(result.section("study"))
    defaults = {key: NOT_STATED for key in COMPARABILITY_KEYS}
    if AXIS_COLUMN_ALIASES.get(study.axis) not in TIME_COLUMNS:
        defaults["hardware"] = ""
    values = result.tree.get("values")
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_VALUES:
        raise DataError(
            f"{result.name} values must be a list of 1 to {MAX_VALUES} numbers or nulls"
        )
    metric, scores = _required_text(result, "metric"), result.section("scores")
    numbers = {key: scores.number(key) for key in scores.tree}
    shared = RunRecord(
        folder=name,
        run_id="",
        name=_required_text(result, "name"),
        architecture=result.text("architecture"),
        seed=None,
        identity=f"{digest} {name}",
        settings={},
        keys={key: keys.text(key) or defaults[key] for key in COMPARABILITY_KEYS}
        | {"metric": metric},
        study=study,
        metric=metric,
        state="finished",
        value=None,
        scores={sanitize(k, 80): (v, 0) for k, v in numbers.items() if v is not None},
        costs={k: v for k in costs.tree if (v := costs.nonnegative(k)) is not None},
        steps=result.count("steps") or 0,
        command=result.text("command", 4000),
        hardware=result.text("hardware", 60),
        content_hash=digest,
        external_source=source,
    )
    return [_make_record(shared, result, index, value) for index, value in enumerate(values)]


def _make_record(shared: RunRecord, result: CheckedFields, index: int, value: object) -> RunRecord:
    number = CheckedFields({"value": value}, f"{result.name} values[{index}]").number("value")
    has_diverged = number is None or not math.isfinite(number)
    return dataclasses.replace(
        shared,
        run_id=f"{shared.content_hash} {shared.folder}.{index}",
        value=None if has_diverged else number,
        state="diverged" if has_diverged else "finished",
    )


def _reject_unknown_keys(fields: CheckedFields, names: Collection[str]) -> None:
    for key in fields.tree:
        if key not in names:
            unknown = sanitize(repr(key), 40)
            raise DataError(f"{fields.name} has the key {unknown}; known: {', '.join(names)}")


def _required_text(fields: CheckedFields, key: str) -> str:
    if not (value := fields.text(key)):
        raise DataError(f"{fields.name} has no {key}; state it")
    return value
