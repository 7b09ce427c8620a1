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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from errors import DataError
from protocol import series
from protocol.series import Scores
from protocol.untrusted import ROWS, Fields, clean, leaves, parsed, read, rows

FORMAT = 1  # of run.json
MOST_DECLARED = 10_000  # comparisons of a plan
FILES = 200  # at most so many results of a step
NONFINITE = 70  # exit code of a run whose loss was no number
ELSEWHERE = ("log", "checkpoint", "debug", "eval", "mesh", "data", "seed")  # settings with no say
SAME = ("accumulate", "compile_cache")  # of `train`: they change how, not what
METRICS = {  # what a run is judged by where its study declares nothing
    "causal_lm": "test/bits_per_byte",
    "masked_lm": "test/masked_nats",
    "denoising": "test/denoised_nats",
    "contrastive": "test/recall@1",
}
WHOLE_ROWS = ("causal_lm", "masked_lm")  # objectives whose rows have train.length positions
HIGHER = ("accuracy", "recall", "mrr", "spearman", "f1")  # words of metrics of which more is better
KEYS = (  # protocol, item 14: rows that differ in one of these are not ranked together
    *("objective", "data", "tokenizer", "length", "batch", "precision", "optimiser", "start"),
    *("metric", "evaluation", "tuning trials"),
)
SETS = ("set", "mask")  # hashes, by split, of what a score is of
UNSCORED = "none"  # instead of what judged a run
State = Literal["finished", "diverged", "unfinished", "failed"]


class Unreadable(NamedTuple):
    folder: str
    reason: str


class Study(NamedTuple):
    """What was declared before the run (`study` in run.json); blank where nothing was."""

    plan: str = ""  # hash of the plan
    candidate: str = ""
    axis: str = ""  # what is equal: training_flops, tokens, params, active_params, ...
    value: float | None = None
    metric: str = ""
    margin: float | None = None  # of practical equivalence
    trials: int | None = None  # of tuning
    role: str = ""  # "tuning": chosen from, never reported
    refutes: str = ""
    comparisons: tuple[tuple[str, str], ...] = ()  # pairs of candidates; (): all
    declared: int = 0  # comparisons of the whole plan, other sizes and objectives included
    varies: tuple[str, ...] = ()  # settings of the objective that it compares


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
    steps: int = 0
    curve: tuple[tuple[float, float], ...] = ()  # (tokens, loss)
    curve_name: str = ""
    hashes: Mapping[int, str] = dataclasses.field(default_factory=dict)  # of the data, by step
    command: str = ""
    code: str = ""
    hardware: str = ""
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
    events = [e.text("event") for e in rows(taken("events.jsonl") or b"", "events.jsonl")]
    settings = run.section("settings")
    steps = settings.section("train").count("steps") or 0
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
        keys=_keys(run, settings, objective, metric, versions, study),
        study=study,
        metric=metric,
        state=state,
        value=scores[metric][0] if state == "finished" and metric in scores else None,
        scores=scores if state == "finished" else {},
        amounts=series.amounts(
            run.section("cost"),
            settings.section("train"),
            _positions(run, objective),
            metrics,
            scores,
        ),
        flags=_flags(settings, events),
        steps=steps,
        curve=series.curve(metrics),
        curve_name=series.curve_name(metrics),
        hashes={r.count("step") or 0: h for r in metrics if (h := r.text("data_hash"))},
        command=_command(run),
        code=_code(run.section("code")),
        hardware=_hardware(run),
        message=status.text("message"),
        evidence=evidence.hexdigest(),
    )


def study_of(study: Fields) -> Study:
    """What a study declares, from run.json or from a result from elsewhere."""
    return Study(
        plan=study.text("plan"),
        candidate=study.text("candidate", 80),
        axis=study.text("axis", 40),
        value=study.amount("value"),
        metric=study.text("metric", 80),
        margin=study.amount("margin"),
        trials=study.count("trials"),
        role=study.text("role", 20),
        refutes=study.text("refutes"),
        comparisons=tuple(study.pairs("comparisons", 80)),
        declared=min(study.count("declared") or 0, MOST_DECLARED),
        varies=tuple(study.texts("varies", 80)),
    )


def higher_is_better(metric: str) -> bool:
    return any(word in metric.lower() for word in HIGHER)


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
    for name in _files(path / "eval" / str(step)):
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


def _files(folder: Path) -> Iterator[str]:
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


def _keys(
    run: Fields,
    settings: Fields,
    objective: str,
    metric: str,
    versions: Mapping[str, str],
    study: Study,
) -> dict[str, str]:
    """The texts of KEYS."""
    data, prints = settings.section("data"), run.section("fingerprints")
    trials = "not declared" if study.trials is None else str(study.trials)
    return {
        "objective": " ".join([objective, *_objective(settings, objective, study.varies)]),
        "data": f"{data.text('source')} {prints.text('data')}",
        "tokenizer": f"{data.text('tokenizer')} {prints.text('tokenizer')}",
        "length": f"{settings.section('train').count('length')} tokens",
        "batch": f"{settings.section('train').count('batch')} sequences",
        "precision": settings.section("model").text("dtype", 20),
        "optimiser": settings.section("optimizer").text("name", 40),
        "start": run.section("flags").text("init_from") or "from scratch",
        "metric": metric or "none",
        "evaluation": versions.get(metric, UNSCORED),
        "tuning trials": trials,
    }


def _objective(settings: Fields, objective: str, varies: tuple[str, ...] = ()) -> list[str]:
    """Its settings; of a mixture those of its parts too, of contrastive learning the dropout that
    makes views differ. In what a study declares to vary, its rows may differ."""
    own = leaves(settings.section(objective).tree)
    under = tuple(f"{name}." for name in varies)
    kept = {k: v for k, v in own.items() if not f"{objective}.{k}.".startswith(under)}
    found = [f"{key}={value}" for key, value in kept.items()]
    found += [f"varies={name}" for name in varies if name.startswith(f"{objective}.")]
    if objective == "contrastive":
        model = settings.section("model")
        sites = (model.section(name).amount("dropout") or 0 for name in ("embed", "block"))
        found.append("dropout=" + ",".join(f"{rate:g}" for rate in sites))
    if objective == "mixture":
        listed = settings.section("mixture").tree.get("parts")
        names = [part[0] for part in listed or [] if isinstance(part, list) and part]
        for name in (n for n in names if isinstance(n, str) and n != "mixture"):
            found += [f"{name}.{text}" for text in _objective(settings, name, varies)]
    return found


def _positions(run: Fields, objective: str) -> float | None:
    """Positions of the whole run that cost what run.json says one costs."""
    train = run.section("settings").section("train")
    size = math.prod(train.amount(name) or 0.0 for name in ("steps", "batch", "length"))
    known = run.section("cost").amount("run_positions")
    return known or (size or None if objective in WHOLE_ROWS else None)


def _flags(settings: Fields, events: list[str]) -> tuple[str, ...]:
    """Why a run is not comparable with any other."""
    reasons = {"rollback": "it went back over a bad stretch of data", "data": "its data changed"}
    found = [reasons[event] for event in dict.fromkeys(events) if event in reasons]
    if fault := settings.section("debug").text("fault"):
        found.append(f"a fault was rehearsed in it: {fault}")
    return tuple(found)


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
