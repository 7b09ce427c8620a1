"""Results from elsewhere: JSON that states what a run folder would show (docs/results.md).

Nothing here can check them: they are marked self-reported, shown beside the others and never ranked
with them.
"""

import dataclasses
import hashlib
import math
from collections.abc import Collection
from pathlib import Path

from errors import DataError
from protocol.columns import AXES
from protocol.declared import study_of
from protocol.keys import KEYS
from protocol.records import Record, Unreadable
from protocol.series import AMOUNTS
from protocol.untrusted import Fields, clean, parsed, read

FORMAT = 1
MOST = 1000  # results in a file
RUNS = 100  # values of a result
TOP = ("format", "source", "results")
RESULT = (
    *("name", "architecture", "metric", "values", "keys", "amounts", "scores"),
    *("study", "command", "steps", "hardware"),
)


def read_results(path: Path, name: str) -> tuple[list[Record], list[Unreadable]]:
    """Records of the file at `path`, one a value; a result that is wrong is left out, with why."""
    data = read(path.parent, path.name)
    if data is None:
        raise DataError("it is not there any more")
    top = parsed(data, name)
    _known(top, TOP)
    if top.count("format") != FORMAT:
        raise DataError(f"{name} has format {top.count('format')}, this board reads {FORMAT}")
    source = _required(top, "source")
    results = top.objects("results")
    if len(results) > MOST:
        raise DataError(f"{name} has {len(results)} results, at most {MOST} are read")
    digest = hashlib.sha256(data).hexdigest()
    records: list[Record] = []
    refused: list[Unreadable] = []
    for index, result in enumerate(results):
        try:
            records += _records(result, f"{name}#{index}", source, digest)
        except DataError as error:
            refused.append(Unreadable(f"{name}#{index}", clean(str(error), 300)))
    return records, refused


def _records(result: Fields, name: str, source: str, digest: str) -> list[Record]:
    _known(result, RESULT)
    keys, amounts = result.section("keys"), result.section("amounts")
    _known(keys, KEYS)
    _known(amounts, AMOUNTS)
    study = study_of(result.section("study"))
    untold = {key: "not stated" for key in KEYS}
    if AXES.get(study.axis) != "seconds":
        untold["hardware"] = ""
    values = result.tree.get("values")
    if not isinstance(values, list) or not 1 <= len(values) <= RUNS:
        raise DataError(f"{result.name} values must be a list of 1 to {RUNS} numbers or nulls")
    metric, scores = _required(result, "metric"), result.section("scores")
    found = {key: scores.number(key) for key in scores.tree}
    shared = Record(
        folder=name,
        run_id="",
        name=_required(result, "name"),
        architecture=result.text("architecture"),
        seed=None,
        identity=f"{digest} {name}",
        settings={},
        keys={key: keys.text(key) or untold[key] for key in KEYS} | {"metric": metric},
        study=study,
        metric=metric,
        state="finished",
        value=None,
        scores={clean(k, 80): (v, 0) for k, v in found.items() if v is not None},
        amounts={k: v for k in amounts.tree if (v := amounts.amount(k)) is not None},
        steps=result.count("steps") or 0,
        command=result.text("command", 4000),
        hardware=result.text("hardware", 60),
        evidence=digest,
        source=source,
    )
    return [_one(shared, result, index, value) for index, value in enumerate(values)]


def _one(shared: Record, result: Fields, index: int, value: object) -> Record:
    number = Fields({"value": value}, f"{result.name} values[{index}]").number("value")
    wild = number is None or not math.isfinite(number)
    return dataclasses.replace(
        shared,
        run_id=f"{shared.evidence} {shared.folder}.{index}",
        value=None if wild else number,
        state="diverged" if wild else "finished",
    )


def _known(fields: Fields, names: Collection[str]) -> None:
    for key in fields.tree:
        if key not in names:
            unknown = clean(repr(key), 40)
            raise DataError(f"{fields.name} has the key {unknown}; known: {', '.join(names)}")


def _required(fields: Fields, key: str) -> str:
    if not (value := fields.text(key)):
        raise DataError(f"{fields.name} has no {key}; state it")
    return value
