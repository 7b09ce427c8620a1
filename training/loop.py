"""The training loop: it reads batches, runs steps, and calls the callbacks around each step."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from arch import Cost
from data.loader import Batches, MixtureBatches, ReadAhead, RepeatedRows, RowSource, read_ahead
from data.open_stores import Data
from data.text_rows import make_row_source
from errors import ConfigError, DataError, NonFiniteError
from objectives import Metrics, MixturePart, Trainable
from settings.json_types import JsonObject
from training import mesh as meshes
from training.callbacks import (
    Callback,
    CheckpointCallback,
    EvalCallback,
    Evaluator,
    FaultCallback,
    LogCallback,
    ProfileCallback,
    StepInfo,
    StopCallback,
    WatchdogCallback,
    evaluate,
)
from training.checkpoint.manager import CheckpointManager
from training.distributed.fault_injection import FaultInjector
from training.distributed.multihost import AnyAcrossHosts
from training.distributed.preemption import GracefulStop
from training.distributed.watchdog import Watchdog
from training.memory_bank import fill_banks
from training.metrics import StepMetrics
from training.program import TrainProgram
from training.run.folder import RunFolder
from training.run.log import MetricsLogger
from training.settings import Settings
from training.state import ResumePoint, TrainState
from training.step import HaltedError, TrainStep, raise_if_halted


class TrainJob(NamedTuple):
    """The parts of a run that the loop works with."""

    program: TrainProgram
    cost: Cost
    data: Data
    run: RunFolder
    checkpoints: CheckpointManager
    log: MetricsLogger
    stop: GracefulStop
    faults: FaultInjector


def train(
    job: TrainJob,
    *,
    eval_during: Evaluator | None = None,
    eval_at_end: Evaluator | None = None,
    load_initial: Callable[[], Trainable] | None = None,
) -> JsonObject:
    """Trains to the last step and returns the scores of the final evaluation.

    Training starts from the newest valid checkpoint. Without one it starts from `load_initial`,
    whose head may be None (a newly initialized head), or from random parameters. `eval_during` runs
    every `eval.every` steps, `eval_at_end` after the last step.

    Raises:
        ConfigError: if the run has trained for more steps than train.steps.
        NonFiniteError: if the run is halted and no rollback is allowed.
        PreemptedError: after a request to stop, once the state is saved.
    """
    program, steps = job.program, job.program.settings.train.steps
    batches = make_batches(job)
    resume_point = restore_or_init(job, load_initial)
    if resume_point.step > steps:
        raise ConfigError(
            f"{job.run.path} has trained {resume_point.step} steps, which is beyond train.steps "
            f"{steps}; set it to at least that, or use another --workdir"
        )
    train_step = program.compile_train_step()
    job.run.record_start(resume_point.step, resume_point.metrics_seal)
    while True:
        try:
            state = run_steps(job, batches, train_step, resume_point, eval_during)
            break
        except HaltedError as halted:
            resume_point = rollback(job, resume_point, halted, load_initial)
    # With several hosts none may leave the final evaluation alone: the others would wait for it.
    with job.stop.mark_saved(steps) if jax.process_count() == 1 else nullcontext():
        scores = evaluate(job.log, eval_at_end, state, steps) if eval_at_end else {}
    job.run.record_finish(steps)
    return scores


def run_steps(
    job: TrainJob,
    batches: Batches | MixtureBatches,
    train_step: TrainStep,
    resume_point: ResumePoint,
    eval_during: Evaluator | None,
) -> TrainState:
    """Runs the steps from `resume_point` to the last one and returns the final state.

    Raises:
        HaltedError: if the guard has halted the run.
        PreemptedError: after a request to stop, once the state is saved.
    """
    program, state, steps = job.program, resume_point.state, job.program.settings.train.steps
    meter = StepMetrics(program, job.cost, batches, job.data.train)
    meter.resume_window(resume_point.window)
    # A rollback restores an older state but does not repeat the data that led to the failure: the
    # batches between the checkpoint and the failed step are skipped. From then on the batch of a
    # step has the index step + skipped_batches, and so does the end of the data.
    skipped_batches = resume_point.skipped_batches
    first, end = resume_point.step + skipped_batches, steps + skipped_batches
    ahead = read_ahead(batches, first, end, data_hash=resume_point.data_hash)
    votes, watchdog = AnyAcrossHosts(), Watchdog(job.run, program.settings.train.hang_timeout)
    callbacks = make_callbacks(job, resume_point, eval_during, meter, watchdog, ahead)
    previous_metrics: Metrics | None = None
    with ahead, watchdog, jax.set_mesh(program.mesh), jax.transfer_guard("disallow"):
        for batch_index, arrays, data_hash in ahead:
            step = batch_index - skipped_batches  # steps done before this one
            for callback in callbacks:
                callback.before_step(step)
            # No callback, because it replaces arrays; without debug.inject_fault it returns them.
            batch = to_device(program, step, job.faults.inject_nan(batch_index, arrays))
            state, metrics = train_step(state, batch)
            # Reading the metrics of the previous step does not wait for the one just started.
            raise_if_halted(previous_metrics, step)
            previous_metrics = metrics
            # All hosts must save and stop at the same step.
            stop, save_again = votes.reduce(
                job.stop.is_requested, job.checkpoints.check_async_save()
            )
            is_last = step + 1 == steps
            info = StepInfo(step + 1, state, metrics, data_hash, is_last, stop, save_again)
            for callback in callbacks:
                callback.after_step(info)
    return state


def make_callbacks(
    job: TrainJob,
    resume_point: ResumePoint,
    eval_during: Evaluator | None,
    meter: StepMetrics,
    watchdog: Watchdog,
    batches: ReadAhead,
) -> list[Callback]:
    """Returns what happens around each step besides training, in this order."""
    settings = job.program.settings
    callbacks: list[Callback] = [WatchdogCallback(watchdog)]
    if settings.debug.inject_fault:
        callbacks.append(FaultCallback(job.faults))
    if (steps := settings.log.profile_steps()) and job.run.is_main_process:
        folder = job.run.file_path("profile")
        callbacks.append(ProfileCallback(folder, steps, watchdog))
    callbacks.append(LogCallback(job.log, meter, batches, settings.log.every))
    if eval_during and settings.eval.every:
        callbacks.append(EvalCallback(eval_during, job.log, meter, watchdog, settings.eval.every))
    callbacks.append(CheckpointCallback(job.checkpoints, meter, job.run, resume_point))
    callbacks.append(StopCallback(job.stop, job.run))
    return callbacks


def make_batches(job: TrainJob) -> Batches | MixtureBatches:
    """Returns the endless training batches, reshuffled every epoch, a function of (seed, step)."""
    settings, mesh = job.program.settings, job.program.mesh
    batches = {p.name: part_batches(settings, p, job.data, mesh) for p in settings.mixture_parts()}
    return batches[""] if "" in batches else MixtureBatches(batches)


def part_batches(settings: Settings, part: MixturePart, data: Data, mesh: Mesh) -> Batches:
    """Returns the batches of one part of a mixture, or of the one objective."""
    train, seed, objective = settings.train, settings.seed, part.objective
    spec = objective.row_spec(settings.model, train.seq_len)
    rows: RowSource = make_row_source(data.select(spec.store_kind).train, spec, seed)
    if train.unique_tokens:
        rows = RepeatedRows(rows, train.unique_tokens // rows.row_length, seed)
    make_row = objective.make_row_fn(settings.model, train.seq_len, data.tokenizer)
    rank, world = meshes.process_shard(mesh, train.batch_size)
    return Batches(rows, train.batch_size, make_row, seed, rank=rank, world_size=world)


def restore_or_init(job: TrainJob, load_initial: Callable[[], Trainable] | None) -> ResumePoint:
    """Returns the newest valid checkpoint, or the start of the run if there is none."""
    with jax.set_mesh(job.program.mesh):
        step = job.checkpoints.find_resume_step()
        if step is not None:
            state = job.checkpoints.restore(step, job.program.abstract_state)
            meta = job.checkpoints.read_meta(step, ["data_hash"])
            fields = {name: meta[name] for name in ResumePoint._fields if name in meta}
            return ResumePoint(state, step, **fields)
        state = job.program.init()
    if load_initial is not None:
        model, head = load_initial()
        head = state.trainable.head if head is None else head
        state = state._replace(trainable=Trainable(model, head))
    program = job.program
    banks = fill_banks(state.banks, state.trainable, program.settings, job.data, program.mesh)
    return ResumePoint(state._replace(banks=banks), 0, "")


def rollback(
    job: TrainJob,
    resume_point: ResumePoint,
    halted: HaltedError,
    load_initial: Callable[[], Trainable] | None,
) -> ResumePoint:
    """Returns the newest checkpoint, to resume from with the data after the failed step.

    The event in events.jsonl excludes such a run from comparisons.

    Raises:
        NonFiniteError: if `optimizer.on_nonfinite` or `max_rollbacks` does not allow a rollback.
    """
    optimizer = job.program.settings.optimizer
    values = {"step": halted.step, "loss": halted.loss, "grad_norm": halted.grad_norm}
    job.checkpoints.wait_until_finished()
    job.run.log_event("nonfinite", values)
    step = job.checkpoints.newest_step()
    is_allowed = optimizer.on_nonfinite == "rollback"
    if not is_allowed or resume_point.rollbacks == optimizer.max_rollbacks:
        saved = f"checkpoint {step} is good" if step else "there is no checkpoint yet"
        hint = (
            f"the run has rolled back {resume_point.rollbacks} times, as many as "
            "optimizer.max_rollbacks allows"
            if is_allowed
            else "or set --config.optimizer.on_nonfinite=skip"
        )
        raise NonFiniteError(
            f"step {halted.step}: loss {halted.loss}, gradient norm {halted.grad_norm}; the update "
            f"was not applied, {saved}; lower optimizer.learning_rate, {hint}"
        )
    restored = restore_or_init(job, load_initial)
    skipped_batches = resume_point.skipped_batches + halted.step - restored.step
    details = {"from": halted.step, "skipped_batches": skipped_batches}
    job.run.record_rollback(restored.step, details)
    job.log.rewind(restored.step)
    return restored._replace(skipped_batches=skipped_batches, rollbacks=resume_point.rollbacks + 1)


def to_device(
    program: TrainProgram, step: int, arrays: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
    """Returns the batch of a step on the mesh, from the rows that this process has.

    Raises:
        DataError: if names, shapes or dtypes are not those that the step was compiled for.
    """
    batch_size = program.settings.train.batch_size
    _, world = meshes.process_shard(program.mesh, batch_size)
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    expected = {
        name: ((s.shape[0] // world, *s.shape[1:]), s.dtype)
        for name, s in program.abstract_batch.items()
    }
    if shapes != expected:
        raise DataError(
            f"the batch of step {step} is {shapes}, the step was compiled for {expected}; an "
            "objective's `make_row` must give every row the same shapes"
        )
    return meshes.shard_batch(program.mesh, arrays, batch_size)
