"""The callbacks around each step: which ones a run has, in which order, and when they act."""

import contextlib
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from arch.weighted_sum import WeightedSum
from errors import PreemptedError
from settings.tree import freeze
from training import callbacks
from training.distributed.preemption import GracefulStop
from training.loop import make_callbacks
from training.settings import Settings, defaults
from training.state import ResumePoint
from training.step import HaltedError


class Recorder:
    """Stands in for the parts that callbacks call; it records the calls."""

    def __init__(self, *due):
        self.calls, self.due, self.wait_seconds = [], due, 0.0

    def beat(self):
        self.calls.append("beat")

    def at_step(self, step):
        self.calls.append(f"fault {step}")

    def add(self, metrics):
        self.calls.append("add")

    def read(self, step, wait_seconds):
        return {"loss": 1.0}

    def window(self):
        return {"loss": [1, 2]}

    def write(self, step, values):
        self.calls.append(f"log {step} {sorted(values)}")

    def is_due(self, step):
        return step in self.due

    def save(self, step, state, meta, *, wait):
        self.calls.append(f"save {step} {meta} {wait}")

    @contextlib.contextmanager
    def paused(self):
        yield


def metrics(halted=0.0):
    values = {"halted": halted, "loss": 2.0, "grad_norm": 3.0}
    return {name: WeightedSum(jnp.float32(x), jnp.ones(())) for name, x in values.items()}


def info(step, *, halted=0.0, is_last=False, stop=False, save_again=False):
    state = SimpleNamespace(trainable="trainable")
    return callbacks.StepInfo(step, state, metrics(halted), "hash", is_last, stop, save_again)


def listed(recorder, evaluator=None, **changes):
    c = defaults()
    c.log.every, c.eval.every = 2, 3
    for key, value in changes.items():
        section, name = key.split("__")
        c[section][name] = value
    job = SimpleNamespace(
        program=SimpleNamespace(settings=freeze(Settings, c)),
        faults=recorder,
        log=recorder,
        checkpoints=recorder,
        stop=GracefulStop(),
        run=SimpleNamespace(step=0, metrics_seal=lambda: {"size": 9}),
    )
    point = ResumePoint(None, 0, "", skipped_batches=1)
    return make_callbacks(job, point, evaluator, recorder, recorder, recorder)


def test_faults_and_evaluations_are_wired_in_only_where_they_are_set():
    names = [type(c).__name__ for c in listed(Recorder())]
    assert names == ["WatchdogCallback", "LogCallback", "CheckpointCallback", "StopCallback"]
    full = listed(Recorder(), print, debug__inject_fault="nan@3")
    assert [type(c).__name__ for c in full] == [
        "WatchdogCallback",
        "FaultCallback",
        "LogCallback",
        "EvalCallback",
        "CheckpointCallback",
        "StopCallback",
    ]
    assert len(listed(Recorder(), print, eval__every=0)) == 4


def run(recorder, step_info, evaluator=None, **changes):
    around = listed(recorder, evaluator, **changes)
    for callback in around:
        callback.before_step(step_info.step - 1)
    for callback in around:
        callback.after_step(step_info)


def test_a_step_is_logged_evaluated_saved_and_stopped_in_this_order():
    recorder = Recorder(6)

    def evaluator(state, step):
        recorder.calls.append(f"evaluate {state.trainable} {step}")
        return {"score": 1.0}

    with pytest.raises(PreemptedError, match="at step 6"):
        run(recorder, info(6, stop=True), evaluator, debug__inject_fault="nan@3")
    assert recorder.calls == [
        "beat",
        "fault 5",
        "add",
        "log 6 ['data_hash', 'loss']",
        "evaluate trainable 6",
        "log 6 ['score']",
        "save 6 {'data_hash': 'hash', 'skipped_batches': 1, 'rollbacks': 0, "
        "'window': {'loss': [1, 2]}, 'metrics_seal': {'size': 9}} True",
    ]


def test_the_last_step_is_logged_and_saved_and_evaluated_elsewhere():
    recorder = Recorder()
    run(recorder, info(3, is_last=True), lambda *_: pytest.fail("evaluated twice"))
    assert [call.split()[0] for call in recorder.calls] == ["beat", "add", "log", "save"]
    assert recorder.calls[-1].endswith("True")


def test_a_step_that_is_not_due_only_collects_its_metrics():
    recorder = Recorder()
    run(recorder, info(5))
    assert recorder.calls == ["beat", "add"]
    run(recorder, info(5, save_again=True))
    assert recorder.calls[-1].startswith("save 5") and recorder.calls[-1].endswith("False")


@pytest.mark.parametrize("step", [4, 5])
def test_nothing_is_logged_or_saved_once_the_guard_has_halted(step):
    recorder = Recorder(4, 5)
    with pytest.raises(HaltedError) as error:
        run(recorder, info(step, halted=1.0))
    assert (error.value.step, error.value.loss, error.value.grad_norm) == (step, 2.0, 3.0)
    assert recorder.calls == ["beat", "add"]


def test_a_stop_names_the_saved_step_in_the_status():
    stop, status = GracefulStop(), SimpleNamespace(step=10)  # the last logged step
    stop.request("SIGTERM")
    with pytest.raises(PreemptedError, match="step 13"):
        callbacks.StopCallback(stop, status).after_step(info(13, stop=True))
    assert status.step == 13
