"""What the loop does around each training step, as callbacks with one interface.

`loop.make_callbacks` lists those of a run, and `loop.run_steps` calls them in that order. They run
under its transfer guard, so that none of them reads a device by accident.
"""

from pathlib import Path
from typing import NamedTuple, Protocol

import jax

from data.loader import ReadAhead
from objectives import Metrics
from settings.json_types import JsonObject
from training.checkpoint.manager import CheckpointManager
from training.distributed.fault_injection import FaultInjector
from training.distributed.preemption import GracefulStop
from training.distributed.watchdog import Watchdog
from training.metrics import StepMetrics
from training.run.folder import RunFolder
from training.run.log import MetricsLogger
from training.state import ResumePoint, TrainState
from training.step import raise_if_halted


class Evaluator(Protocol):
    """An evaluation of the state of a run, during the run or at its end."""

    def __call__(self, state: TrainState, step: int) -> JsonObject:
        """Returns the scores by name after `step` steps."""


class StepInfo(NamedTuple):
    """The results of a step, which callbacks read and do not change."""

    step: int  # steps done
    state: TrainState
    metrics: Metrics  # metrics of this step, which may still be under computation
    data_hash: str | None  # hash of all batches so far
    is_last: bool  # whether this is the last step of the run
    stop: bool  # whether a stop was requested on any host
    save_again: bool  # whether a save failed on any host and is to be repeated


class Callback(Protocol):
    """An action around each step."""

    def before_step(self, step: int) -> None:
        """Acts when the batch is ready; `step` is the number of steps done."""

    def after_step(self, info: StepInfo) -> None:
        """Acts when the step has been started; the device may still compute it."""


class WatchdogCallback(NamedTuple):
    """Reports each step to the watchdog, which ends a run that hangs."""

    watchdog: Watchdog

    def before_step(self, step: int) -> None:
        """Reports the end of the step before."""
        self.watchdog.beat()

    def after_step(self, info: StepInfo) -> None:
        """Does nothing."""


class FaultCallback(NamedTuple):
    """Causes the faults of `debug.inject_fault` that strike when a step begins."""

    faults: FaultInjector

    def before_step(self, step: int) -> None:
        """Causes the faults of this step."""
        self.faults.at_step(step)

    def after_step(self, info: StepInfo) -> None:
        """Does nothing."""


class LogCallback(NamedTuple):
    """Logs the mean metrics every `every` steps and after the last step."""

    log: MetricsLogger
    meter: StepMetrics
    batches: ReadAhead
    every: int

    def before_step(self, step: int) -> None:
        """Does nothing."""

    def after_step(self, info: StepInfo) -> None:
        """Collects the metrics, and writes a row if one is due and the guard has not halted."""
        self.meter.add(info.metrics)
        if info.step % self.every == 0 or info.is_last:
            raise_if_halted(info.metrics, info.step)
            values = self.meter.read(info.step, self.batches.wait_seconds)
            self.log.write(info.step, values | {"data_hash": info.data_hash})


class ProfileCallback:
    """Writes a trace of the steps `log.profile` to `profile/` in the run folder.

    The trace begins when the batch of the first step is ready, and ends when the device has
    computed the last one. A run that stops in between keeps the trace up to there.
    """

    def __init__(self, folder: Path, steps: tuple[int, int], watchdog: Watchdog):
        self._folder, self._watchdog = folder, watchdog
        self._first, self._last = steps
        self._is_tracing = False

    def before_step(self, step: int) -> None:
        """Starts the trace before its first step."""
        if step + 1 == self._first:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._is_tracing = True

    def after_step(self, info: StepInfo) -> None:
        """Ends the trace after its last step, or where the run ends."""
        if self._is_tracing and (info.step == self._last or info.is_last or info.stop):
            with self._watchdog.paused():
                jax.block_until_ready((info.state, info.metrics))
                jax.profiler.stop_trace()
            self._is_tracing = False


class EvalCallback(NamedTuple):
    """Evaluates every `every` steps, except after the last step, which another evaluation follows.

    The time of an evaluation is neither part of the speed nor a reason for the watchdog.
    """

    evaluator: Evaluator
    log: MetricsLogger
    meter: StepMetrics
    watchdog: Watchdog
    every: int

    def before_step(self, step: int) -> None:
        """Does nothing."""

    def after_step(self, info: StepInfo) -> None:
        """Evaluates if it is due."""
        if info.step % self.every == 0 and not info.is_last:
            with self.meter.paused(), self.watchdog.paused():
                evaluate(self.log, self.evaluator, info.state, info.step)


class CheckpointCallback(NamedTuple):
    """Saves where the settings ask for it, after a failed save, before a stop, and at the end.

    Most of a save happens in the background, unless the run ends after it.
    """

    checkpoints: CheckpointManager
    meter: StepMetrics
    run: RunFolder
    resume_point: ResumePoint

    def before_step(self, step: int) -> None:
        """Does nothing."""

    def after_step(self, info: StepInfo) -> None:
        """Saves the state if it is due and the guard has not halted."""
        run_ends = info.is_last or info.stop
        if self.checkpoints.is_due(info.step) or info.save_again or run_ends:
            raise_if_halted(info.metrics, info.step)
            with self.meter.paused(), jax.transfer_guard("allow"):
                resume_point = self.resume_point._replace(
                    data_hash=info.data_hash,
                    window=self.meter.window(),
                    metrics_seal=self.run.metrics_seal(),
                )
                meta = resume_point.metadata()
                self.checkpoints.save(info.step, info.state, meta, wait=run_ends)


class StopCallback(NamedTuple):
    """Ends the run after a request to stop; it follows the callback that saves the state."""

    stop: GracefulStop
    run: RunFolder

    def before_step(self, step: int) -> None:
        """Does nothing."""

    def after_step(self, info: StepInfo) -> None:
        """Raises PreemptedError if a stop was requested on any host.

        Raises:
            PreemptedError: at the same step on all hosts.
        """
        if info.stop:
            self.run.step = info.step  # status.json names the step that is saved
            raise self.stop.preempted_error(info.step)


def evaluate(log: MetricsLogger, evaluator: Evaluator, state: TrainState, step: int) -> JsonObject:
    """Runs an evaluator, logs its scores at `step` and returns them."""
    with jax.transfer_guard("allow"):
        scores = evaluator(state, step)
    log.write(step, scores)
    return scores
