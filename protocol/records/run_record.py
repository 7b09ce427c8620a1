"""Run folders as records: what the board needs of a run, read without trusting its files.

A folder that cannot be read is an `UnreadableResult` with the reason; it does not affect the
others. This package must not import jax: a board reads a thousand folders in seconds.
"""

import dataclasses
import hashlib
import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from errors import DataError
from protocol.board.columns import AXIS_COLUMN_ALIASES, TIME_COLUMNS
from protocol.records import series
from protocol.records.comparability import comparability_keys, describe_platform
from protocol.records.inert_settings import drop_inert
from protocol.records.metrics import DEFAULT_METRICS
from protocol.records.plan_file import PlanRecord, Plans, RecordedChoice, check_plan
from protocol.records.run_consistency import find_inconsistencies
from protocol.records.run_evidence import RunEvidence, read_evidence
from protocol.records.safe_read import (
    MAX_JSONL_BYTES,
    CheckedFields,
    flatten,
    parse_jsonl,
    parse_object,
    read_file,
    sanitize,
)
from protocol.records.scores import read_scores
from protocol.records.seals import check_seals
from protocol.records.series import Scores
from protocol.records.study_record import NOT_REPORTED, StudyRecord, parse_study

FORMAT = 2  # Format of run.json.
MAX_RESULT_FILES = 200  # Files of results at one step.
NONFINITE_EXIT_CODE = 70  # Exit code of a run whose loss was not finite.
# Sections of the settings that do not change a result, or have a comparability key of their own.
NON_IDENTITY_SECTIONS = ("log", "checkpoint", "debug", "eval", "mesh", "data", "seed")
# Settings of `train` that change how a result is computed, not the result.
COMPUTE_ONLY_KEYS = ("grad_accum_steps", "compile_cache")
MAY_CHANGE_ON_RESUME = (*(f"train.{name}" for name in COMPUTE_ONLY_KEYS), "train.hang_timeout")
FIXED_LENGTH_OBJECTIVES = ("causal_lm", "masked_lm")  # Their rows have train.seq_len positions.
RecordState = Literal["finished", "diverged", "unfinished", "failed"]


class UnreadableResult(NamedTuple):
    """A folder or an external result that is not on the board, with the reason."""

    folder: str
    reason: str


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One training run."""

    folder: str  # Path to show, from the path that was given.
    run_id: str
    name: str
    architecture: str
    seed: int | None
    identity: str  # Hash that is equal for runs that differ only in their seed.
    settings: Mapping[str, str]  # Settings from which `identity` is made.
    keys: Mapping[str, str]  # Comparability keys.
    study: StudyRecord
    metric: str
    state: RecordState
    value: float | None  # Value of the metric at the last step.
    scores: Scores
    costs: Mapping[str, float]  # Values by column.
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)  # Of splits, by score.
    exclusions: tuple[str, ...] = ()  # Reasons why the run is not comparable with any other.
    notes: tuple[str, ...] = ()  # Events that a reader should consider.
    steps: int = 0
    learning_curve: tuple[tuple[float, float], ...] = ()  # Points (tokens, loss).
    learning_curve_metric: str = ""
    # Points (step, score) of validation scores near the end of training, by name.
    late_scores: Mapping[str, tuple[tuple[float, float], ...]] = dataclasses.field(
        default_factory=dict
    )
    # Rolling hash of the training data by step.
    data_hashes: Mapping[int, str] = dataclasses.field(default_factory=dict)
    command: str = ""
    code_version: str = ""
    hardware: str = ""
    energy_source: str = ""  # How the energy of training is known, in words.
    platform: str = ""  # Hardware with compiler versions, within which seconds compare.
    error_message: str = ""  # Reason of a failure.
    content_hash: str = ""  # SHA-256 over all files that were read.
    external_source: str = ""  # Source of an external result; blank for a run folder.
    init_from: str = ""  # Where its parameters come from; blank: from scratch.
    created: str = ""  # Time at which the run was created, as ISO 8601.
    plan: PlanRecord | None = None  # The plan that plan.json beside the run has for it.
    choice: RecordedChoice | None = None  # What tuning selected for the run, by its plan.
    evidence: RunEvidence = RunEvidence()  # What the files of the run say of its result.

    @property
    def is_reported(self) -> bool:
        """Whether the run is a result, not one that served to choose a setting or to start from."""
        return self.study.role not in NOT_REPORTED


def read_run(path: Path, folder: str, plans: Plans | None = None) -> RunRecord:
    """Returns the record of the run folder at `path`, which is shown as `folder`.

    Args:
        path: the run folder.
        folder: the name to show.
        plans: the plans in plan.json beside the folder (`plan_file.read_plans`).

    Raises:
        DataError: if a file of it is missing, damaged, or of another format.
    """
    files = _HashedFiles(path)
    run = _read_run_json(files)
    status = parse_object(files.read("status.json") or b"{}", "status.json")
    metrics = series.increasing_steps(files.read("metrics.jsonl") or b"")
    events = parse_jsonl(files.read("events.jsonl") or b"", "events.jsonl")
    settings = run.section("settings")
    steps = settings.section("train").count("steps") or 0
    results = read_results(path, steps, files.read)
    manifest = files.read("checkpoints", str(steps), "MANIFEST.json")
    check_seals(run, status, results, files.content)
    study = parse_study(run.section("study"))
    objective = _require_text(settings.text("objective"), "run.json settings objective")
    metric = study.metric or DEFAULT_METRICS.get(objective, "")
    scores, evaluations, parts = read_scores(results, metric)
    state = _record_state(status, metrics, scores.get(metric))
    identity_settings, identity = _identity(settings)
    is_finished = state == "finished"
    evidence = read_evidence(run, settings, metrics, results, manifest, is_finished=is_finished)
    files_of_run = run, status, metrics, events, results
    inconsistencies = find_inconsistencies(*files_of_run, is_finished=is_finished)
    planned = check_plan(study, settings, plans or {})
    run_tokens = _run_tokens(run, objective)
    return RunRecord(
        folder=folder,
        run_id=_require_text(run.text("run_id"), "run.json run_id"),
        name=study.candidate or _config_name(run, settings),
        architecture=_architecture(settings.section("model")),
        seed=settings.count("seed"),
        identity=identity,
        settings=identity_settings,
        keys=comparability_keys(run, settings, objective, metric, evaluations, study),
        study=study,
        metric=metric,
        state=state,
        value=scores[metric][0] if is_finished and metric in scores else None,
        scores=scores if is_finished else {},
        parts=parts,
        costs=series.read_costs(run.section("cost"), settings, run_tokens, metrics, scores),
        exclusions=_exclusions(settings, events, state, study.axis),
        notes=_notes(events),
        steps=steps,
        learning_curve=series.learning_curve(metrics),
        learning_curve_metric=series.learning_curve_metric(metrics),
        late_scores=series.late_scores(metrics, steps),
        data_hashes={r.count("step") or 0: h for r in metrics if (h := r.text("data_hash"))},
        command=_command(run),
        code_version=_code_version(run.section("code")),
        hardware=_hardware(run),
        energy_source=run.text("energy", 300),
        platform=describe_platform(run),
        error_message=status.text("message"),
        content_hash=files.digest,
        init_from=run.section("flags").text("init_from"),
        created=run.text("created", 40),
        plan=planned.plan,
        choice=planned.choice,
        evidence=evidence.with_contradictions(*inconsistencies, *planned.problems),
    )


class _HashedFiles:
    """The files of a run folder that were read, with the hash of all of them."""

    def __init__(self, root: Path):
        self.content: dict[str, bytes] = {}
        self._root = root
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The SHA-256 over names and hashes of all files that were read."""
        return self._hash.hexdigest()

    def read(self, *parts: str) -> bytes | None:
        """Returns the bytes of a file; None if it does not exist."""
        data = read_file(self._root, *parts, max_bytes=MAX_JSONL_BYTES)
        if data is not None:
            digest = hashlib.sha256(data).hexdigest()
            self._hash.update(f"{'/'.join(parts)} {digest}\n".encode())
            self.content["/".join(parts)] = data
        return data


def _read_run_json(files: _HashedFiles) -> CheckedFields:
    run = parse_object(_require_file(files.read("run.json"), "run.json"), "run.json")
    if run.count("format") != FORMAT:
        raise DataError(f"run.json has format {run.count('format')}, this board reads {FORMAT}")
    return run


def _require_file(data: bytes | None, name: str) -> bytes:
    if data is None:
        raise DataError(f"{name} is missing")
    return data


def _require_text(value: str, name: str) -> str:
    if not value:
        raise DataError(f"{name} is missing")
    return value


def read_results(
    path: Path, step: int, read_hashed: Callable[..., bytes | None]
) -> list[CheckedFields]:
    """Returns the results of all tasks at a step.

    Raises:
        DataError: if a file is of another step.
    """
    results = []
    for name in list_result_files(path / "eval" / str(step)):
        data = read_hashed("eval", str(step), name)
        task = parse_object(data or b"{}", f"eval/{step}/{name}")
        if task.count("step") not in (None, step):
            raise DataError(f"{task.name} is of step {task.count('step')}, in the folder of {step}")
        results.append(task)
    return results


def list_result_files(folder: Path) -> Iterator[str]:
    """Yields the names of result files, sorted; a folder that is a link has none.

    Raises:
        DataError: if there are more than `MAX_RESULT_FILES`.
    """
    if any(p.is_symlink() for p in (folder, folder.parent)) or not folder.is_dir():
        return
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".json"))
    if len(names) > MAX_RESULT_FILES:
        raise DataError(
            f"eval/{folder.name} has {len(names)} files, at most {MAX_RESULT_FILES} are read"
        )
    yield from (name for name in names if not name.startswith("."))


def _record_state(
    status: CheckedFields, metrics: list[CheckedFields], score: tuple[float, int] | None
) -> RecordState:
    state, losses = status.text("state"), [row.number("loss") for row in metrics[-2:]]
    is_nonfinite = score is not None and not math.isfinite(score[0])
    is_nonfinite |= any(loss is not None and not math.isfinite(loss) for loss in losses)
    if is_nonfinite or status.count("code") == NONFINITE_EXIT_CODE:
        return "diverged"
    return "finished" if state == "finished" else "failed" if state == "failed" else "unfinished"


def _identity(settings: CheckedFields) -> tuple[dict[str, str], str]:
    """Returns the settings that may change a result, flat, and their hash."""
    read = drop_inert(settings)
    tree = {k: v for k, v in read.items() if k not in NON_IDENTITY_SECTIONS}
    train = CheckedFields(read.get("train", {}), "run.json settings train")
    ignored = {*COMPUTE_ONLY_KEYS} - ({"grad_accum_steps"} if _balances_parts(settings) else set())
    tree["train"] = {k: v for k, v in train.tree.items() if k not in ignored}
    hidden = {"balance_over"}  # It has an effect together with grad_accum_steps above 1 alone.
    if train.count("grad_accum_steps") == 1:
        hidden.add("grad_accum_steps")
    text = json.dumps(_without(tree, hidden), sort_keys=True)
    return flatten(tree), hashlib.sha256(text.encode()).hexdigest()


def _without(tree: Mapping[str, object], names: set[str]) -> dict[str, object]:
    return {
        key: _without(value, names) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if key not in names
    }


def _balances_parts(settings: CheckedFields) -> bool:
    """Whether a Mixture of Experts has a balance loss, and it is formed per microbatch."""
    keys = flatten({"model": drop_inert(settings).get("model", {})})
    has_loss = any(k.endswith(".balance_loss") and v not in ("0", "0.0") for k, v in keys.items())
    return has_loss and {v for k, v in keys.items() if k.endswith(".balance_over")} != {"batch"}


def _run_tokens(run: CheckedFields, objective: str) -> float | None:
    """Returns the tokens of the whole run, each of which costs what run.json states."""
    recorded = run.section("cost").nonnegative("run_tokens")
    if recorded or objective not in FIXED_LENGTH_OBJECTIVES:
        return recorded or None
    train = run.section("settings").section("train")
    return (
        math.prod(train.nonnegative(k) or 0.0 for k in ("steps", "batch_size", "seq_len")) or None
    )


def _exclusions(
    settings: CheckedFields, events: Sequence[CheckedFields], state: RecordState, axis: str
) -> tuple[str, ...]:
    """Returns the reasons why a run is not comparable with any other."""
    reasons = {
        "rollback": "it was rolled back and skipped data",
        "data_changed": "its data changed",
    }
    if state != "diverged":  # A diverged run is comparable: it counts as diverged.
        reasons["nonfinite_params"] = "its parameters were not finite at a checkpoint"
    if AXIS_COLUMN_ALIASES.get(axis) in TIME_COLUMNS:
        reasons["devices_changed"] = "its mesh or devices changed while it was timed"
    exclusions = [reasons[name] for name in _event_kinds(events) if name in reasons]
    changes: dict[str, object] = {}
    for event in events:
        if event.text("event") == "settings_changed":
            changes |= event.section("changes").tree
    may_change = {*MAY_CHANGE_ON_RESUME}
    if _balances_parts(settings):
        may_change.remove("train.grad_accum_steps")
    changed_keys = [
        k
        for k in changes
        if k.partition(".")[0] not in NON_IDENTITY_SECTIONS and k not in may_change
    ]
    exclusions += [
        f"{sanitize(key, 80)} changed during training "
        f"({sanitize(_format_change(changes[key]), 80)})"
        for key in sorted(changed_keys)
    ]
    if fault := settings.section("debug").text("inject_fault"):
        exclusions.append(f"a fault was injected into it: {fault}")
    return tuple(exclusions)


def _format_change(change: object) -> str:
    return " to ".join(map(str, change)) if isinstance(change, list) else str(change)


def _notes(events: Sequence[CheckedFields]) -> tuple[str, ...]:
    subjects = {
        "environment_changed": "code, packages or environment changed during training",
        "devices_changed": "mesh or devices changed during training",
        "file_damaged": "a file of it was damaged; rows of its metrics may be missing",
    }
    return tuple(subjects[name] for name in _event_kinds(events) if name in subjects)


def _event_kinds(events: Sequence[CheckedFields]) -> list[str]:
    return list(dict.fromkeys(event.text("event") for event in events))


def _config_name(run: CheckedFields, settings: CheckedFields) -> str:
    """Returns the name and size of the config, else the pattern of layers."""
    text, _, size = run.section("flags").text("config").partition(":")
    path = Path(text)
    stem = path.parent.name if path.name == "run.json" else path.stem
    return ":".join(filter(None, (stem, size))) or _architecture(settings.section("model"))


def _architecture(model: CheckedFields) -> str:
    pattern = " ".join([*model.texts("first_layers", 80), *model.texts("layers", 80)])
    return sanitize(f"{pattern}, depth {model.count('depth')}, width {model.count('width')}")


def _command(run: CheckedFields) -> str:
    words = run.texts("command", 1000)
    return sanitize("uv run " + shlex.join(words), 4000) if words else ""


def _code_version(code: CheckedFields) -> str:
    commit = code.text("commit", 40) or code.text("version", 40)
    return (
        f"{commit}, with changes {code.text('diff_sha256')[:12]}"
        if code.boolean("dirty")
        else commit
    )


def _hardware(run: CheckedFields) -> str:
    devices = run.section("devices")
    return f"{devices.count('count')} x {devices.text('kind', 60)}" if devices.tree else ""
