"""The training loop: batches in, steps, and at their boundaries everything that can happen."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from arch import Cost
from data import Data
from data.loader import Batches, Joined, read_ahead
from data.texts import rows_of
from errors import ConfigError, DataError, NonFiniteError
from objectives import Learner, Member, Metrics
from training import mesh as meshes
from training.banks import filled
from training.checkpoint import Checkpoints
from training.distributed import Votes
from training.faults import Faults
from training.log import Log
from training.meter import Meter
from training.program import Program
from training.run import RunFolder
from training.settings import Settings
from training.state import State
from training.stop import GracefulStop
from training.watchdog import Watchdog

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
    job: Job,
    *,
    during: Judge | None = None,
    after: Judge | None = None,
    initial: Callable[[], Learner] | None = None,
) -> dict[str, Any]:
    """Train to the last step, from the newest valid checkpoint if there is one; the last scores.

    `during` judges every eval.every steps, `after` at the end; `initial` reads parameters to begin
    with where no checkpoint is; without a head that begins anew. Raises Preempted once a stop is
    asked for and the state is saved.
    """
    batches = make_batches(job)
    place = begin(job, initial)
    if place.step > job.program.settings.train.steps:
        raise ConfigError(
            f"{job.run.path} has trained {place.step} steps, which is beyond train.steps "
            f"{job.program.settings.train.steps}; set it to at least that, or use another --workdir"
        )
    step = job.program.compiled()
    job.run.begin(place.step)
    while True:
        try:
            state = follow(job, batches, step, place, during)
            break
        except Halted as halted:
            place = back(job, place, halted, initial)
    steps = job.program.settings.train.steps
    # Of several hosts none may leave alone: the others would wait for it.
    with job.stop.saved(steps) if jax.process_count() == 1 else nullcontext():
        scores = judged(job, after, state, steps) if after else {}
    job.run.finish(steps)
    return scores


def follow(
    job: Job, batches: Batches | Joined, step: Any, place: "Place", during: Judge | None
) -> State:
    """From `place` to the last step."""
    program, settings, state = job.program, job.program.settings, place.state
    meter = Meter(program, job.cost, batches, job.data.train)
    first, last = place.step + place.passed, settings.train.steps + place.passed
    ahead = read_ahead(batches, first, last, rolling=place.rolling)
    votes, watchdog = Votes(), Watchdog(job.run, settings.train.patience)
    before: Metrics | None = None
    with ahead, watchdog, jax.set_mesh(program.mesh), jax.transfer_guard("disallow"):
        for number, arrays, rolling in ahead:
            watchdog.beat()
            index = number - place.passed
            job.faults.at_step(index)
            batch = placed(program, index, job.faults.poisoned(number, arrays))
            state, metrics = step(state, batch)
            done = index + 1
            refuse_halted(before, index)  # of the step before: the device keeps working
            before = metrics
            meter.add(metrics)
            ended = done == settings.train.steps
            stop, again = votes.cast(job.stop.requested, job.checkpoints.poll())
            if done % settings.log.every == 0 or ended:
                refuse_halted(metrics, done)
                values = meter.read(done, ahead.waited)
                job.log.write(done, values | {"data_hash": rolling})
            if during and settings.eval.every and done % settings.eval.every == 0 and not ended:
                with meter.paused(), watchdog.paused():
                    judged(job, during, state, done)
            if job.checkpoints.due(done) or again or stop or ended:
                refuse_halted(metrics, done)
                with meter.paused():
                    saved(job, state, done, rolling, place, wait=ended or stop)
            if stop:
                raise job.stop.preempted(done)
    return state


def make_batches(job: Job) -> Batches | Joined:
    """Training batches: rows for ever, reshuffled every epoch, a function of (seed, step)."""
    settings = job.program.settings
    mesh = job.program.mesh
    found = {m.name: stream(settings, m, job.data, mesh) for m in settings.members()}
    return found[""] if "" in found else Joined(found)


def stream(settings: Settings, member: Member, data: Data, mesh: Mesh) -> Batches:
    """The batches of one part of a mixture, or of the one objective."""
    train, seed, objective = settings.train, settings.seed, member.objective
    wanted = objective.rows(settings.model, train.length)
    rows = rows_of(data.holding(wanted.reads == "records").train, wanted, seed)
    example = objective.host(settings.model, train.length, data.tokenizer)
    rank, world = meshes.share(mesh, train.batch)
    return Batches(rows, train.batch, example, seed, rank=rank, world=world)


class Place(NamedTuple):
    """Where to go on from."""

    state: State
    step: int
    rolling: str  # hash of the data before it
    passed: int = 0  # batches that going back has passed over
    returns: int = 0  # how often it went back


class Halted(Exception):
    """The state was frozen: what `step` computed is not finite, or is a spike."""

    def __init__(self, step: int, loss: float, norm: float):
        super().__init__(step, loss, norm)
        self.step, self.loss, self.norm = step, loss, norm


def begin(job: Job, initial: Callable[[], Learner] | None) -> Place:
    """The newest good checkpoint, or the start."""
    with jax.set_mesh(job.program.mesh):
        found = job.checkpoints.latest()
        if found is not None:
            state = job.checkpoints.restore(found, job.program.state)
            meta = job.checkpoints.read_meta(found, ["rolling"])
            history = {name: meta[name] for name in ("passed", "returns") if name in meta}
            return Place(state, found, meta["rolling"], **history)
        state = job.program.init()
    settings = job.program.settings
    state = state._replace(banks=filled(settings, job.data, job.program.mesh))
    if initial is not None:
        model, head = initial()
        head = state.learner.head if head is None else head
        state = state._replace(learner=Learner(model, head))
    return Place(state, 0, "")


def refuse_halted(metrics: Metrics | None, step: int) -> None:
    """Halted if the state was frozen at `step`."""
    if metrics is not None and float(jax.device_get(metrics["halted"].sum)):
        values = jax.device_get([metrics[name].sum for name in ("loss", "grad_norm")])
        raise Halted(step, *map(float, values))


def back(job: Job, place: Place, halted: Halted, initial: Callable[[], Learner] | None) -> Place:
    """The checkpoint before what is not finite, with the data after it; else NonFiniteError.

    Such a run is not comparable with others, which its event tells the board.
    """
    optimizer, said = job.program.settings.optimizer, {"step": halted.step, "loss": halted.loss}
    job.checkpoints.wait()
    job.run.event("nonfinite", said | {"grad_norm": halted.norm})
    found = job.checkpoints.newest()
    kept = f"checkpoint {found} is good" if found else "there is no checkpoint yet"
    if optimizer.on_nonfinite != "rollback" or place.returns == optimizer.max_rollbacks:
        way = (
            "or set --config.optimizer.on_nonfinite=skip"
            if optimizer.on_nonfinite != "rollback"
            else f"it went back {place.returns} times, as optimizer.max_rollbacks allows"
        )
        raise NonFiniteError(
            f"step {halted.step}: loss {halted.loss}, gradient norm {halted.norm}; the update was "
            f"not applied, {kept}; lower optimizer.learning_rate, {way}"
        )
    again = begin(job, initial)
    passed = place.passed + halted.step - again.step
    job.run.back(again.step, {"from": halted.step, "passed": passed})
    return again._replace(passed=passed, returns=place.returns + 1)


def judged(job: Job, judge: Judge, state: State, step: int) -> dict[str, Any]:
    with jax.transfer_guard("allow"):
        scores = judge(state.learner, step)
    job.log.write(step, scores)
    return scores


def saved(
    job: Job, state: State, step: int, rolling: str | None, place: Place, *, wait: bool
) -> None:
    """Start to save; unless asked to `wait`, the rest happens beside training."""
    meta = {"rolling": rolling, "passed": place.passed, "returns": place.returns}
    with jax.transfer_guard("allow"):
        job.checkpoints.save(step, state, meta, wait=wait)


def placed(program: Program, index: int, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch on the mesh; DataError if it is not what the step was compiled for."""
    batch = program.settings.train.batch
    rank, world = meshes.share(program.mesh, batch)
    first = rank * (batch // world)  # of the rows that this process has
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    wanted = {
        name: ((s.shape[0] // world, *s.shape[1:]), s.dtype) for name, s in program.batch.items()
    }
    if found != wanted:
        raise DataError(
            f"the batch of step {index} is {found}, the step was compiled for {wanted}; an "
            "objective's `example` must give every row the same shapes"
        )
    if jax.process_count() == 1:
        return jax.device_put(dict(arrays), {n: s.sharding for n, s in program.batch.items()})

    def piece(array: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        rows = slice((index[0].start or 0) - first, (index[0].stop or batch) - first)
        return array[(rows, *index[1:])]

    with jax.transfer_guard("allow"):  # as explicit as a device_put
        return {
            name: jax.make_array_from_callback(s.shape, s.sharding, partial(piece, arrays[name]))
            for name, s in program.batch.items()
        }
