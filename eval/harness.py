"""Runs evaluation tasks and records their scores, one JSON file per task: `eval/STEP/TASK.json`.

A task is skipped if its file exists for this step and version. An interrupted evaluation can
therefore be repeated: only the missing files are written.
"""

import time
from collections.abc import Callable, Sequence

import jax

from data.fetch import MULTIPLE_CHOICE_TASKS
from errors import ConfigError
from eval.capability import PROBES
from eval.split_part import SCORE_NAME, eval_share, select_part
from eval.task import EvalContext, Score, ScoreValues, Task, TaskEntry
from objectives import OBJECTIVES, Objective, mixture_parts
from settings.changes import with_changes
from settings.json_types import JsonObject
from settings.tree import as_json
from settings.types import did_you_mean
from training.distributed.multihost import run_on_main_process
from training.loop import Evaluator, TrainJob
from training.memory_bank import SINGLE_OBJECTIVE
from training.run.console import LOGGER
from training.run.folder import RunFolder
from training.settings import Settings
from training.state import TrainState

# To add a task, write its file and add it here: the objective that it evaluates, and its class.
TASKS: dict[str, TaskEntry] = {
    "bits_per_byte": TaskEntry("causal_lm", "eval.tasks.bits_per_byte:BitsPerByte"),
    "masked": TaskEntry("masked_lm", "eval.tasks.masked:MaskedTokenLoss"),
    "denoised": TaskEntry("denoising", "eval.tasks.denoised:DenoisingLoss"),
    "preference": TaskEntry(
        "preference", "eval.tasks.preference:PreferenceAccuracy", is_limited=False
    ),
    "retrieval": TaskEntry("contrastive", "eval.tasks.retrieval:Retrieval", is_limited=False),
    "baselines": TaskEntry("causal_lm", "eval.tasks.baselines:Baselines", is_logged=False),
    "positions": TaskEntry("causal_lm", "eval.tasks.loss_by_position:LossByPosition"),
    "by_group": TaskEntry("causal_lm", "eval.tasks.by_group:GroupBitsPerByte"),
    "inference": TaskEntry("causal_lm", "eval.tasks.inference:Inference", is_limited=False),
    "sample": TaskEntry("causal_lm", "eval.tasks.sample:TextSample", is_limited=False),
    "probe": TaskEntry("", "eval.tasks.probe:LinearProbe", is_limited=False),
    "finetune": TaskEntry(
        "", "eval.tasks.finetune:FineTuning", is_limited=False, section="finetune"
    ),
    "similarity": TaskEntry("", "eval.tasks.similarity:Similarity", is_limited=False),
    **{
        name: TaskEntry(
            "causal_lm", "eval.tasks.multiple_choice:MultipleChoice", (name,), is_limited=False
        )
        for name in ("lambada", *MULTIPLE_CHOICE_TASKS)
    },
    **{
        name: TaskEntry("", "eval.capability.tasks:CapabilityTask", (name,), is_limited=False)
        for name in PROBES
    },
}
# Tasks of a run whose `eval.tasks` is empty. The first task also runs during training.
DEFAULT_TASKS: dict[str, tuple[str, ...]] = {
    "causal_lm": ("bits_per_byte", "sample", "baselines"),
    "masked_lm": ("masked",),
    "denoising": ("denoised",),
    "contrastive": ("retrieval",),
    "preference": ("preference",),
}
# The objective of which a model of another one is a model too, for tasks that read no split.
READ_AS = {"preference": "causal_lm"}


def resolve_tasks(settings: Settings, requested: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Returns the names of the requested tasks, or those of the run if none are requested.

    Raises:
        ConfigError: if a task does not exist or cannot evaluate the objective of the run.
    """
    names = requested or settings.eval.tasks or default_tasks(settings)
    kinds = {objective_kind(part.objective) for part in settings.mixture_parts()}
    read_as = {READ_AS[kind] for kind in kinds if kind in READ_AS}
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"eval.tasks has {name!r}; {did_you_mean(name, TASKS)}")
        accepted = kinds if TASKS[name].is_limited else kinds | read_as
        if TASKS[name].objective not in {"", *accepted}:
            raise ConfigError(
                f"task {name!r} evaluates the objective {TASKS[name].objective}, but the run has "
                f"{settings.objective}; remove it from eval.tasks"
            )
    return names


def default_tasks(settings: Settings) -> tuple[str, ...]:
    """Returns the default tasks of a run; a mixture has those of all its parts."""
    kinds = [objective_kind(part.objective) for part in settings.mixture_parts()]
    return tuple(dict.fromkeys(task for kind in kinds for task in DEFAULT_TASKS[kind]))


def objective_kind(objective: Objective) -> str:
    """Returns the name of the objective that `objective.for_eval()` evaluates."""
    eval_class = type(objective.for_eval())
    return next(name for name, cls in OBJECTIVES.items() if cls is eval_class)


def narrow_to_objective(ctx: EvalContext, objective: str) -> EvalContext:
    """Returns the context of the part of a mixture that has this objective.

    If no part has that objective, it is a part that can be read as such (`READ_AS`), or the first.
    """
    parts = mixture_parts(ctx.objective)
    by_kind = {objective_kind(part.objective): part for part in reversed(parts)}
    part = by_kind.get(objective, parts[0])
    for kind, other in by_kind.items():
        if objective not in by_kind and READ_AS.get(kind) == objective:
            part = other._replace(objective=OBJECTIVES[objective]())
    row_spec = part.objective.row_spec(ctx.settings.model, ctx.settings.train.seq_len)
    data = ctx.data.select(row_spec.store_kind)
    banks = {SINGLE_OBJECTIVE: ctx.banks[part.name]} if part.name in ctx.banks else ctx.banks
    return ctx._replace(
        trainable=part.select_trainable(ctx.trainable),
        objective=part.objective,
        data=data,
        banks=banks,
    )


def evaluate(
    ctx: EvalContext,
    task_names: Sequence[str],
    run: RunFolder,
    step: int,
    *,
    on_task_end: Callable[[JsonObject], None] = lambda record: None,
) -> ScoreValues:
    """Runs the tasks whose results are missing, and returns the scores of all tasks by name.

    The result of a task is written, and passed to `on_task_end`, before the next one begins. Values
    are floats, and text for samples and hashes.
    """
    scores: ScoreValues = {}
    splits = ctx.settings.eval.splits
    for number, name in enumerate(task_names, 1):
        task = TASKS[name](splits=splits)
        record = run_on_main_process(lambda name=name: run.read_eval(step, name))  # type: ignore[misc]
        labels, section = part_labels(name, ctx), read_section(name, ctx)
        if record is None or not _is_complete(record, task.version, splits, labels, section):
            LOGGER.info("evaluating %s (task %d of %d)", name, number, len(task_names))
            run_on_main_process(lambda: run.check_eval_writable(step))
            record = _run_task(name, task, ctx, step)
            run.write_eval(step, name, record)
        on_task_end(record)
        scores |= {score["name"]: score["value"] for score in record["scores"]}
    return scores


def run_task(name: str, ctx: EvalContext, step: int) -> JsonObject:
    """Returns the result of a task on the splits of the run, whatever is recorded of it."""
    return _run_task(name, TASKS[name](splits=ctx.settings.eval.splits), ctx, step)


def part_labels(name: str, ctx: EvalContext) -> dict[str, str]:
    """Returns the label of each split of which a task reads a part, by the name of its score."""
    if not TASKS[name].is_limited or not ctx.settings.eval.limit:
        return {}
    ctx = narrow_to_objective(ctx, TASKS[name].objective)
    parts = {
        f"{split}/{SCORE_NAME}": select_part(ctx, getattr(ctx.data, split)).label
        for split in ctx.settings.eval.splits
    }
    return {key: label for key, label in parts.items() if label}


def read_section(name: str, ctx: EvalContext) -> JsonObject:
    """Returns the section of `eval` that a task reads, {} if it reads none."""
    section = TASKS[name].section
    return as_json(vars(ctx.settings.eval)[section]) if section else {}


def with_recorded_limit(settings: Settings, scores: Sequence[JsonObject]) -> Settings:
    """Returns settings that evaluate whole splits again where the recorded scores are of such."""
    if any(str(score["name"]).endswith(f"/{SCORE_NAME}") for score in scores):
        return settings
    return with_changes(settings, {"eval.limit": 0})


def _is_complete(
    record: JsonObject,
    version: int,
    splits: tuple[str, ...],
    labels: dict[str, str],
    section: JsonObject,
) -> bool:
    """Whether a recorded result is valid, of this version, these settings and parts of splits."""
    scores, recorded_splits = record.get("scores"), record.get("splits")
    if not isinstance(scores, list) or not isinstance(recorded_splits, list):
        return False
    is_valid = all(isinstance(s, dict) and {"name", "value"} <= s.keys() for s in scores)
    has_splits = {*splits} <= {*map(str, recorded_splits)}
    if not is_valid or record.get("version") != version or not has_splits:
        return False
    if record.get("settings", {}) != section:
        return False
    names = {f"{split}/{SCORE_NAME}" for split in splits}
    return labels == {s["name"]: s["value"] for s in scores if s["name"] in names}


def _run_task(name: str, task: Task, ctx: EvalContext, step: int) -> JsonObject:
    start, context = time.perf_counter(), narrow_to_objective(ctx, TASKS[name].objective)
    with jax.named_scope(f"eval/{name}"):
        scores = [score._asdict() for score in task(context)]
    labels = part_labels(name, ctx) if scores else {}
    scores += [Score(key, label)._asdict() for key, label in labels.items()]
    seconds = time.perf_counter() - start
    return {"task": name, "version": task.version, "step": step, "seconds": seconds} | {
        "settings": read_section(name, ctx),
        "length": ctx.settings.train.seq_len,
        "data": ctx.data.fingerprint,
        "splits": list(ctx.settings.eval.splits),
        "scores": scores,
    }


def make_evaluators(job: TrainJob) -> tuple[Evaluator, Evaluator]:
    """Returns the evaluator that runs during training and the one that runs at its end.

    The first runs the first default task on the validation split. The second runs and records all
    tasks of the run.
    """
    program, tasks = job.program, default_tasks(job.program.settings)
    n_steps = eval_share(program.settings, job.data) * program.settings.train.steps
    job.log.console.expect_evaluation(n_steps)

    def make_context(state: TrainState) -> EvalContext:
        program_values = program.mesh, program.settings, program.objective
        return EvalContext(state.trainable, *program_values, job.data, state.banks)

    def during_training(state: TrainState, step: int) -> ScoreValues:
        entry = TASKS[tasks[0]]
        ctx = narrow_to_objective(make_context(state), entry.objective)
        scores = entry(splits=("valid",))(ctx)
        return {score.name: score.value for score in scores}

    def after_training(state: TrainState, step: int) -> ScoreValues:
        ctx, names = make_context(state), resolve_tasks(program.settings)
        logged = [name for name in names if TASKS[name].is_logged]
        scores = evaluate(ctx, logged, job.run, step)
        evaluate(ctx, [name for name in names if name not in logged], job.run, step)
        return scores

    return during_training, after_training
