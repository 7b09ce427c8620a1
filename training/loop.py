"""The training loop: batches in, steps, and at their boundaries everything that can happen."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from arch import Cost
from data import Data
from data.loader import Batches, Joined, read_ahead
from data.texts import rows_of
from errors import DataError, NonFiniteError
from objectives import Learner, Member, Metrics
from training.checkpoint import Checkpoints
from training.faults import Faults
from training.log import Log
from training.meter import Meter
from training.program import Program
from training.run import RunFolder
from training.settings import Settings
from training.state import State
from training.stop import GracefulStop

Judge = Callable[[Learner, int], dict[str, Any]]  # scores of a learner after a step


class Job(NamedTuple):
    """What a run is made of."""

    program: Program
    cost: Cost
    data: Data
    run: RunFolder
    checkpoints: Checkpoints
    log: Log
    stop: GracefulStop
    faults: Faults


def train(
    job: Job, *, during: Judge | None = None, after: Judge | None = None, initial: Any = None
) -> dict[str, Any]:
    """Train to the last step, from the newest valid checkpoint if there is one; the last scores.

    `during` judges every eval.every steps, `after` at the end; `initial` are parameters to begin
    with, a Learner. Raises Preempted once a stop is asked for and the state is saved.
    """
    program, settings = job.program, job.program.settings
    batches = make_batches(job)
    step = program.compiled()
    state, start, before = begin(job, initial)
    job.run.begin(start)
    meter = Meter(program, job.cost, batches, job.data.train)
    ahead = read_ahead(batches, start, settings.train.steps, rolling=before)
    last: Metrics | None = None
    with ahead, jax.set_mesh(program.mesh), jax.transfer_guard("disallow"):
        for index, arrays, rolling in ahead:
            job.faults.at_step(index)
            batch = placed(program, index, job.faults.poisoned(index, arrays))
            state, metrics = step(state, batch)
            done = index + 1
            refuse_halted(job, last, index)  # of the step before: the device keeps working
            last = metrics
            meter.add(metrics)
            ended = done == settings.train.steps
            if done % settings.log.every == 0 or ended:
                refuse_halted(job, metrics, done)
                values = meter.read(done, ahead.waited)
                job.log.write(done, values | {"data_hash": rolling})
            if during and settings.eval.every and done % settings.eval.every == 0 and not ended:
                with meter.paused():
                    judged(job, during, state, done)
            if job.checkpoints.due(done) or job.stop.requested or ended:
                refuse_halted(job, metrics, done)
                with meter.paused():
                    saved(job, state, done, rolling, wait=ended or job.stop.requested)
            job.checkpoints.poll()
            if job.stop.requested:
                raise job.stop.preempted(done)
    scores = judged(job, after, state, settings.train.steps) if after else {}
    job.run.finish(settings.train.steps)
    return scores


def make_batches(job: Job) -> Batches | Joined:
    """Training batches: rows for ever, reshuffled every epoch, a function of (seed, step)."""
    settings = job.program.settings
    found = {member.name: stream(settings, member, job.data) for member in settings.members()}
    return found[""] if "" in found else Joined(found)


def stream(settings: Settings, member: Member, data: Data) -> Batches:
    """The batches of one part of a mixture, or of the one objective."""
    train, seed, objective = settings.train, settings.seed, member.objective
    wanted = objective.rows(settings.model, train.length)
    rows = rows_of(data.holding(wanted.reads == "records").train, wanted, seed)
    example = objective.host(settings.model, train.length, data.tokenizer)
    return Batches(rows, train.batch, example, seed)


def begin(job: Job, initial: Any) -> tuple[State, int, str]:
    """The state to go on from, its step, and the rolling hash of the data before it."""
    with jax.set_mesh(job.program.mesh):
        found = job.checkpoints.latest()
        if found is not None:
            state = job.checkpoints.restore(found, job.program.state)
            return state, found, job.checkpoints.read_meta(found, ["rolling"])["rolling"]
        state = job.program.init()
    return (state if initial is None else state._replace(learner=initial)), 0, ""


def refuse_halted(job: Job, metrics: Metrics | None, step: int) -> None:
    """NonFiniteError if the state was frozen at `step`."""
    if metrics is None or not float(jax.device_get(metrics["halted"].sum)):
        return
    job.checkpoints.wait()
    found = job.checkpoints.newest()
    kept = f"checkpoint {found} is good" if found else "there is no checkpoint yet"
    values = jax.device_get({name: metrics[name].sum for name in ("loss", "grad_norm")})
    loss, norm = (float(values[name]) for name in ("loss", "grad_norm"))
    job.run.event("nonfinite", {"step": step, "loss": loss, "grad_norm": norm})
    raise NonFiniteError(
        f"step {step}: loss {loss}, gradient norm {norm}; the update was not applied, {kept}; "
        f"lower optimizer.learning_rate, or set --config.optimizer.on_nonfinite=skip"
    )


def judged(job: Job, judge: Judge, state: State, step: int) -> dict[str, Any]:
    with jax.transfer_guard("allow"):
        scores = judge(state.learner, step)
    job.log.write(step, scores)
    return scores


def saved(job: Job, state: State, step: int, rolling: str | None, *, wait: bool) -> None:
    """Start to save; unless asked to `wait`, the rest happens beside training."""
    with jax.transfer_guard("allow"):
        job.checkpoints.save(step, state, {"rolling": rolling}, wait=wait)


def placed(program: Program, index: int, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch on the mesh; DataError if it is not what the step was compiled for."""
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    wanted = {name: (shape.shape, shape.dtype) for name, shape in program.batch.items()}
    if found != wanted:
        raise DataError(
            f"the batch of step {index} is {found}, the step was compiled for {wanted}; an "
            "objective's `example` must give every row the same shapes"
        )
    return jax.device_put(dict(arrays), {n: s.sharding for n, s in program.batch.items()})
