"""Runs tasks and records what they yield, one JSON file each: `eval/<step>/<task>.json`.

A file that is there for this step and version is not made again; one that an interruption left out
is, so that evaluating twice changes nothing.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

from errors import ConfigError
from eval.bits import BitsPerByte
from eval.sample import Sample
from eval.task import Subject, Task
from objectives import Learner
from schema import nearest
from training.loop import Job, Judge
from training.run import RunFolder

# To add a task: write its file, import it, name it here.
TASKS: dict[str, Callable[[], Task]] = {"bits_per_byte": BitsPerByte, "sample": Sample}


def known(names: Iterable[str]) -> None:
    """ConfigError for a task that there is not."""
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"eval.tasks has {name!r}; {nearest(name, TASKS)}")


def judge(subject: Subject, names: Iterable[str], run: RunFolder, step: int) -> dict[str, Any]:
    """Scores of all tasks by name; numbers are floats, samples text."""
    scores: dict[str, Any] = {}
    for name in names:
        task = TASKS[name]()
        record = run.read_eval(step, name)
        if record is None or record["version"] != task.version:
            record = _record(name, task, subject, step)
            run.write_eval(step, name, record)
        scores |= {score["name"]: score["value"] for score in record["scores"]}
    return scores


def _record(name: str, task: Task, subject: Subject, step: int) -> dict[str, Any]:
    start = time.perf_counter()
    with jax.named_scope(f"eval/{name}"):
        scores = [score._asdict() for score in task(subject)]
    seconds = time.perf_counter() - start
    return {"task": name, "version": task.version, "step": step, "seconds": seconds} | {
        "length": subject.settings.train.length,
        "data": subject.data.fingerprint,
        "scores": scores,
    }


def judges(job: Job) -> tuple[Judge, Judge]:
    """What judges during a run, on the validation split, and at its end, by all its tasks."""
    program = job.program

    def subject(learner: Learner) -> Subject:
        return Subject(learner, program.mesh, program.settings, program.objective, job.data)

    def during(learner: Learner, step: int) -> dict[str, Any]:
        scores = BitsPerByte(splits=("valid",))(subject(learner))
        return {score.name: score.value for score in scores}

    def after(learner: Learner, step: int) -> dict[str, Any]:
        return judge(subject(learner), program.settings.eval.tasks, job.run, step)

    return during, after
