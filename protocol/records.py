"""Run folders as records: what the board needs of a run, read without trusting it.

A folder that cannot be read is `Unreadable`, with the reason; the others stay. Left out on purpose:
anything that imports jax, since a board is made of a thousand folders in seconds.
"""

import dataclasses
import hashlib
import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from errors import DataError
from protocol import series
from protocol.columns import AXES
from protocol.declared import Study, study_of
from protocol.keys import keys, machine
from protocol.metrics import METRICS
from protocol.series import Scores
from protocol.untrusted import ROWS, Fields, clean, leaves, parsed, read, rows

FORMAT = 1  # of run.json
FILES = 200  # at most so many results of a step
NONFINITE = 70  # exit code of a run whose loss was no number
ELSEWHERE = ("log", "checkpoint", "debug", "eval", "mesh", "data", "seed")  # settings with no say
SAME = ("accumulate", "compile_cache")  # of `train`: they change how, not what
MIDWAY = (*(f"train.{name}" for name in SAME), "train.patience")  # may change between attempts
WHOLE_ROWS = ("causal_lm", "masked_lm")  # objectives whose rows have train.length positions
SETS = ("set", "mask")  # hashes, by split, of what a score is of
State = Literal["finished", "diverged", "unfinished", "failed"]


class Unreadable(NamedTuple):
    folder: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Record:
    """One training run."""

    folder: str  # as shown, below what was asked for
    run_id: str
    name: str
    architecture: str
    seed: int | None
    identity: str  # equal for runs that differ in nothing but the seed
    settings: Mapping[str, str]  # those that identity is made of
    keys: Mapping[str, str]  # equal for runs that may be ranked together
    study: Study
    metric: str
    state: State
    value: float | None  # of the metric, at the last step
    scores: Scores
    amounts: Mapping[str, float]  # columns by name
    flags: tuple[str, ...] = ()  # why it is not comparable
    notes: tuple[str, ...] = ()  # what a reader should know of how it went
    steps: int = 0
    curve: tuple[tuple[float, float], ...] = ()  # (tokens, loss)
    curve_name: str = ""
    hashes: Mapping[int, str] = dataclasses.field(default_factory=dict)  # of the data, by step
    command: str = ""
    code: str = ""
    hardware: str = ""
    machine: str = ""  # with versions: what its seconds are of
    message: str = ""  # why it failed
    evidence: str = ""  # sha256 over all that was read, and the manifest of the last checkpoint
    source: str = ""  # where a result from elsewhere is from; "": this is a run folder

    @property
    def reported(self) -> bool:
        """Whether it is a result of its own, not one to choose a setting by."""
        return self.study.role != "tuning"


def read_run(path: Path, folder: str) -> Record:
    """The record of the run folder at `path`, shown as `folder`; DataError says what is wrong."""
    evidence = hashlib.sha256()

    def taken(*parts: str, limit: int = ROWS) -> bytes | None:
        data = read(path, *parts, limit=limit)
        if data is not None:
            digest = hashlib.sha256(data).hexdigest()
            evidence.update(f"{'/'.join(parts)} {digest}\n".encode())
        return data

    run = parsed(_found(taken("run.json"), "run.json"), "run.json")
    if run.count("format") != FORMAT:
        raise DataError(f"run.json has format {run.count('format')}, this board reads {FORMAT}")
    status = parsed(taken("status.json") or b"{}", "status.json")
    metrics = series.rising(taken("metrics.jsonl") or b"")
    events = rows(taken("events.jsonl") or b"", "events.jsonl")
    settings = run.section("settings")
    train = settings.section("train")
    steps = train.count("steps") or 0
    scores, versions = _scores(path, steps, taken)
    taken("checkpoints", str(steps), "MANIFEST.json")
    study = study_of(run.section("study"))
    objective = _required(settings.text("objective"), "run.json settings objective")
    metric = study.metric or METRICS.get(objective, "")
    state = _state(status, metrics, scores.get(metric))
    own, identity = _own(settings)
    return Record(
        folder=folder,
        run_id=_required(run.text("run_id"), "run.json run_id"),
        name=study.candidate or _named(run, settings),
        architecture=_architecture(settings.section("model")),
        seed=settings.count("seed"),
        identity=identity,
        settings=own,
        keys=keys(run, settings, objective, metric, versions, study),
        study=study,
        metric=metric,
        state=state,
        value=scores[metric][0] if state == "finished" and metric in scores else None,
        scores=scores if state == "finished" else {},
        amounts=series.amounts(
            *(run.section("cost"), train, _positions(run, objective), metrics, scores)
        ),
        flags=_flags(settings, events, state, AXES.get(study.axis) == "seconds"),
        notes=_notes(events),
        steps=steps,
        curve=series.curve(metrics),
        curve_name=series.curve_name(metrics),
        hashes={r.count("step") or 0: h for r in metrics if (h := r.text("data_hash"))},
        command=_command(run),
        code=_code(run.section("code")),
        hardware=_hardware(run),
        machine=machine(run),
        message=status.text("message"),
        evidence=evidence.hexdigest(),
    )


def _found(data: bytes | None, name: str) -> bytes:
    if data is None:
        raise DataError(f"{name} is missing")
    return data


def _required(value: str, name: str) -> str:
    if not value:
        raise DataError(f"{name} is missing")
    return value


def _scores(path: Path, step: int, taken: Any) -> tuple[Scores, dict[str, str]]:
    """Scores of the last step by name, and for each what judged it: task, version, length, data."""
    scores: Scores = {}
    versions: dict[str, str] = {}
    for name in result_files(path / "eval" / str(step)):
        data = taken("eval", str(step), name)
        task = parsed(data or b"{}", f"eval/{step}/{name}")
        if task.count("step") not in (None, step):
            raise DataError(f"{task.name} is of step {task.count('step')}, in the folder of {step}")
        version, label = task.count("version") or 0, task.text("task", 60)
        how = f"{label} v{version}, length {task.count('length')}, data {task.text('data')}"
        found = task.objects("scores")
        said = [score for score in found if score.is_text("value")]
        sets = {score.text("name", 80): score.text("value") for score in said}
        for score in found:
            if score.is_text("value"):
                continue  # a sample, or the hash of a set
            value, key = score.number("value"), score.text("name", 80)
            if value is not None and key:
                split = key.partition("/")[0]
                own = [(n, sets[f"{split}/{n}"]) for n in SETS if f"{split}/{n}" in sets]
                scores[key] = value, version
                versions[key] = ", ".join([how, *(f"{n} {digest}" for n, digest in own)])
    return scores, versions


def result_files(folder: Path) -> Iterator[str]:
    """Names of results, in order; a folder that is a link has none."""
    if any(p.is_symlink() for p in (folder, folder.parent)) or not folder.is_dir():
        return
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".json"))
    if len(names) > FILES:
        raise DataError(f"eval/{folder.name} has {len(names)} files, at most {FILES} are read")
    yield from (name for name in names if not name.startswith("."))


def _state(status: Fields, metrics: list[Fields], score: tuple[float, int] | None) -> State:
    state, losses = status.text("state"), [row.number("loss") for row in metrics[-2:]]
    wild = score is not None and not math.isfinite(score[0])
    wild |= any(loss is not None and not math.isfinite(loss) for loss in losses)
    if wild or status.count("code") == NONFINITE:
        return "diverged"
    return "finished" if state == "finished" else "failed" if state == "failed" else "unfinished"


def _own(settings: Fields) -> tuple[dict[str, str], str]:
    """Settings that may change a result, flat, and their hash."""
    tree = {k: v for k, v in settings.tree.items() if k not in ELSEWHERE}
    train = settings.section("train").tree
    tree["train"] = {k: v for k, v in train.items() if k not in SAME}
    text = json.dumps(tree, sort_keys=True)
    return leaves(tree), hashlib.sha256(text.encode()).hexdigest()


def _positions(run: Fields, objective: str) -> float | None:
    """Positions of the whole run that cost what run.json says one costs."""
    train = run.section("settings").section("train")
    size = math.prod(train.amount(name) or 0.0 for name in ("steps", "batch", "length"))
    known = run.section("cost").amount("run_positions")
    return known or (size or None if objective in WHOLE_ROWS else None)


def _flags(
    settings: Fields, events: Sequence[Fields], state: State, timed: bool
) -> tuple[str, ...]:
    """Why a run is not comparable with any other."""
    reasons = {"rollback": "it went back over a bad stretch of data", "data": "its data changed"}
    if state != "diverged":  # such a run is counted as what it is
        reasons["tainted"] = "its parameters were not finite at a checkpoint"
    if timed:
        reasons["elastic"] = "its mesh or devices changed while it was timed"
    found = [reasons[name] for name in _kinds(events) if name in reasons]
    changes: dict[str, Any] = {}
    for event in events:
        if event.text("event") == "settings":
            changes |= event.section("changes").tree
    moved = [k for k in changes if k.partition(".")[0] not in ELSEWHERE and k not in MIDWAY]
    found += [
        f"its {clean(key, 80)} changed on the way ({clean(_pair(changes[key]), 80)})"
        for key in sorted(moved)
    ]
    if fault := settings.section("debug").text("fault"):
        found.append(f"a fault was rehearsed in it: {fault}")
    return tuple(found)


def _pair(change: Any) -> str:
    return " to ".join(map(str, change)) if isinstance(change, list) else str(change)


def _notes(events: Sequence[Fields]) -> tuple[str, ...]:
    what = {"environment": "code, packages or environment", "elastic": "mesh or devices"}
    return tuple(f"{what[name]} changed on the way" for name in _kinds(events) if name in what)


def _kinds(events: Sequence[Fields]) -> list[str]:
    return list(dict.fromkeys(event.text("event") for event in events))


def _named(run: Fields, settings: Fields) -> str:
    """The config's name and size, else the pattern of layers."""
    path, _, size = run.section("flags").text("config").partition(":")
    return ":".join(filter(None, (Path(path).stem, size))) or _architecture(
        settings.section("model")
    )


def _architecture(model: Fields) -> str:
    pattern = " ".join([*model.texts("first", 80), *model.texts("layers", 80)])
    return clean(f"{pattern}, depth {model.count('depth')}, width {model.count('width')}")


def _command(run: Fields) -> str:
    words = run.texts("command", 1000)
    return clean("uv run " + shlex.join(words), 4000) if words else ""


def _code(code: Fields) -> str:
    commit = code.text("commit", 40) or code.text("version", 40)
    return f"{commit}, with changes {code.text('changes')[:12]}" if code.flag("dirty") else commit


def _hardware(run: Fields) -> str:
    devices = run.section("devices")
    return f"{devices.count('count')} x {devices.text('kind', 60)}" if devices.tree else ""
