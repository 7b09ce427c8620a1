"""Runs tasks and records what they yield, one JSON file each: `eval/<step>/<task>.json`.

A file that is there for this step and version is not made again; one that an interruption left out
is, so that evaluating twice changes nothing.
"""

import time
from collections.abc import Iterable
from typing import Any

import jax

from errors import ConfigError
from eval import answers
from eval.capability.tasks import TASKS as CAPABILITIES
from eval.denoised import Denoised
from eval.held_out import BitsPerByte
from eval.inference import Inference
from eval.masked import Masked
from eval.positions import Positions
from eval.probe import Probe
from eval.retrieval import Retrieval
from eval.sample import Sample
from eval.similarity import Similarity
from eval.task import Subject, Task
from objectives import OBJECTIVES, Learner, Objective, members
from schema import nearest
from training.distributed import decided
from training.loop import Job, Judge
from training.run import RunFolder
from training.settings import Settings

# To add a task: write its file, import it, name it here.
TASKS: dict[str, Any] = {
    "bits_per_byte": BitsPerByte,
    "masked": Masked,
    "denoised": Denoised,
    "retrieval": Retrieval,
    "positions": Positions,
    "inference": Inference,
    "sample": Sample,
    "probe": Probe,
    "similarity": Similarity,
    **answers.TASKS,
    **CAPABILITIES,
}
# What a run judges itself by if `eval.tasks` says nothing; the first also during training.
OWN: dict[str, tuple[str, ...]] = {
    "causal_lm": ("bits_per_byte", "sample"),
    "masked_lm": ("masked",),
    "denoising": ("denoised",),
    "contrastive": ("retrieval",),
}


def chosen(settings: Settings, asked: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The tasks asked for, else those of a run; ConfigError for one that cannot judge it."""
    names = asked or settings.eval.tasks or own(settings)
    able = {"", *(kind(member.objective) for member in settings.members())}
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"eval.tasks has {name!r}; {nearest(name, TASKS)}")
        if TASKS[name].objective not in able:
            raise ConfigError(
                f"eval.tasks has {name!r}, which judges {TASKS[name].objective}, not "
                f"{settings.objective}; leave it out"
            )
    return names


def own(settings: Settings) -> tuple[str, ...]:
    """The tasks of a run that names none: of a mixture, those of its parts."""
    kinds = [kind(member.objective) for member in settings.members()]
    return tuple(dict.fromkeys(task for name in kinds for task in OWN[name]))


def kind(objective: Objective) -> str:
    """The name of what `objective` is judged as: its own, or that of one it is a way to train."""
    judged = type(objective.judged())
    return next(name for name, known in OBJECTIVES.items() if known is judged)


def narrowed(subject: Subject, task: Any) -> Subject:
    """What a task judges of a mixture: the part with its objective, else the first."""
    parts = members(subject.objective)
    member = next((m for m in parts if kind(m.objective) == task.objective), parts[0])
    wanted = member.objective.rows(subject.settings.model, subject.settings.train.length)
    data = subject.data.holding(wanted.reads == "records")
    return subject._replace(
        learner=member.learner(subject.learner), objective=member.objective, data=data
    )


def judge(subject: Subject, names: Iterable[str], run: RunFolder, step: int) -> dict[str, Any]:
    """Scores of all tasks by name; numbers are floats, samples text."""
    scores: dict[str, Any] = {}
    splits = subject.settings.eval.splits
    for name in names:
        task = TASKS[name](splits=splits)
        record = decided(lambda name=name: run.read_eval(step, name))  # type: ignore[misc]
        if record is None or not _serves(record, task.version, splits):
            record = _record(name, task, subject, step)
            run.write_eval(step, name, record)
        scores |= {score["name"]: score["value"] for score in record["scores"]}
    return scores


def _serves(record: dict[str, Any], version: int, splits: tuple[str, ...]) -> bool:
    """Whether `record`, as it was found, has what is asked for."""
    scores, judged = record.get("scores"), record.get("splits")
    if not isinstance(scores, list) or not isinstance(judged, list):
        return False
    sound = all(isinstance(s, dict) and {"name", "value"} <= s.keys() for s in scores)
    return sound and record.get("version") == version and {*splits} <= {*map(str, judged)}


def _record(name: str, task: Task, subject: Subject, step: int) -> dict[str, Any]:
    start = time.perf_counter()
    with jax.named_scope(f"eval/{name}"):
        scores = [score._asdict() for score in task(narrowed(subject, task))]
    seconds = time.perf_counter() - start
    return {"task": name, "version": task.version, "step": step, "seconds": seconds} | {
        "length": subject.settings.train.length,
        "data": subject.data.fingerprint,
        "splits": list(subject.settings.eval.splits),
        "scores": scores,
    }


def judges(job: Job) -> tuple[Judge, Judge]:
    """What judges during a run, on the validation split, and at its end, by all its tasks."""
    program, tasks = job.program, own(job.program.settings)

    def subject(learner: Learner) -> Subject:
        return Subject(learner, program.mesh, program.settings, program.objective, job.data)

    def during(learner: Learner, step: int) -> dict[str, Any]:
        task = TASKS[tasks[0]](splits=("valid",))
        scores = task(narrowed(subject(learner), task))
        return {score.name: score.value for score in scores}

    def after(learner: Learner, step: int) -> dict[str, Any]:
        return judge(subject(learner), chosen(program.settings), job.run, step)

    return during, after
