"""Signals ask for a stop between steps; faults are rehearsed on purpose and at the right place."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from errors import ConfigError, PreemptedError
from training.distributed.fault_injection import FaultInjector, InjectedFault, parse_faults
from training.distributed.preemption import STOP_SIGNALS, GracefulStop
from training.run.folder import RunFolder

ROOT = Path(__file__).parents[2]


def send(name):
    os.kill(os.getpid(), signal.Signals[name])


@pytest.mark.parametrize("name", STOP_SIGNALS)
def test_the_first_signal_asks(name):  # covers P1, P4
    with GracefulStop() as stop:
        assert not stop.is_requested
        send(name)
        assert stop.is_requested and stop.reason == name
        error = stop.preempted_error(12)
    assert isinstance(error, PreemptedError) and error.code == 75
    assert f"{name} at step 12, which is saved. Run the same command to resume." in str(error)
    assert ("requeue" in str(error)) == (name == "SIGUSR1")


def test_a_second_interrupt_stops_at_once():  # covers P2
    with pytest.raises(KeyboardInterrupt), GracefulStop() as stop:
        send("SIGINT")
        assert stop.is_requested
        send("SIGINT")
        pytest.fail("still here")


@pytest.mark.parametrize("name", STOP_SIGNALS)
def test_nothing_waits_where_all_is_saved(name):
    with GracefulStop() as stop:
        with pytest.raises(PreemptedError, match=f"{name} at step 9"), stop.mark_saved(9):
            send(name)
            pytest.fail("still here")
        send("SIGTERM")  # outside, it asks
        with pytest.raises(PreemptedError), stop.mark_saved(9):
            pytest.fail("continues")


def test_other_signals_may_come_twice():
    with GracefulStop() as stop:
        for name in ("SIGTERM", "SIGTERM", "SIGUSR1", "SIGINT"):
            send(name)
        assert stop.reason == "SIGTERM"


def test_handlers_are_put_back():
    before = [signal.getsignal(signal.Signals[name]) for name in STOP_SIGNALS]
    with pytest.raises(ValueError), GracefulStop():
        assert signal.getsignal(signal.SIGTERM) != before[1]
        raise ValueError
    assert [signal.getsignal(signal.Signals[name]) for name in STOP_SIGNALS] == before


def test_outside_the_main_thread_it_is_asked_by_call():
    seen = []

    def work():
        with GracefulStop() as stop:
            stop.request("the notebook")
            stop.request("another")
            seen.append(stop.reason)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["the notebook"] and signal.getsignal(signal.SIGTERM) == before


# Faults.


@pytest.mark.parametrize(
    ("spec", "faults"),
    [
        ("", ()),
        ("kill@5", (InjectedFault("kill", "", 5),)),
        ("kill@save:5", (InjectedFault("kill", "save:", 5),)),
        (
            "nan@7, sigterm@save:4",
            (InjectedFault("nan", "", 7), InjectedFault("sigterm", "save:", 4)),
        ),
        ("hang@9,enospc@6", (InjectedFault("hang", "", 9), InjectedFault("enospc", "", 6))),
    ],
)
def test_faults_are_read(spec, faults):
    assert parse_faults(spec) == faults


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("kil@5", "did you mean 'kill'"),
        ("kill", "KIND@STEP"),
        ("kill@", "KIND@STEP"),
        ("kill@-1", "KIND@STEP"),
        ("kill@5,", "KIND@STEP"),
        ("nan@save:5", "use nan@5"),
        ("kill@load:5", "KIND@STEP"),
    ],
)
def test_unknown_faults_are_refused(spec, text):
    with pytest.raises(ConfigError, match=text):
        FaultInjector(spec)
    with pytest.raises(ConfigError, match=text):
        FaultInjector(spec, attempt=2)


def test_a_signal_comes_at_its_step_or_its_save():  # covers P3
    with GracefulStop() as stop:
        faults = FaultInjector("sigterm@4")
        for step in (3, 5):
            faults.at_step(step)
        faults.at_save(4)
        assert not stop.is_requested
        faults.at_step(4)
        assert stop.is_requested
    with GracefulStop() as stop:
        faults = FaultInjector("sigterm@save:4")
        faults.at_step(4)
        assert not stop.is_requested
        thread = threading.Thread(target=faults.at_save, args=(4,))  # as the checkpoint does
        thread.start()
        thread.join()
        time.sleep(0)
        assert stop.is_requested


def test_the_disk_stays_full_from_its_step_on():
    faults = FaultInjector("enospc@6")
    faults.at_save(5)
    for step in (6, 7):
        with pytest.raises(OSError, match="No space left"):
            faults.at_save(step)


def test_only_the_weights_of_the_poisoned_step_are_not_finite():
    batch = {"tokens": np.ones(3, np.int32), "weights": np.ones(3, np.float32)}
    faults = FaultInjector("nan@7")
    assert faults.inject_nan(6, batch) is batch and not faults.is_nan_step(6)
    bad = faults.inject_nan(7, batch)
    assert np.isnan(bad["weights"]).all() and (bad["tokens"] == 1).all()
    assert np.isfinite(batch["weights"]).all()


def test_faults_strike_in_the_first_attempt_only():
    faults = FaultInjector("nan@7,sigterm@7,enospc@7", attempt=2)
    faults.at_step(7)
    faults.at_save(7)
    assert not faults.is_nan_step(7)


def test_a_hang_hangs_until_it_is_interrupted():
    with pytest.raises(KeyboardInterrupt), GracefulStop():
        for delay in (0.1, 0.4):
            threading.Timer(delay, send, ["SIGINT"]).start()
        FaultInjector("hang@9").at_step(9)


# A process that is told to stop.

STOPPED = """
    import sys, time, jax.numpy as jnp
    from errors import PreemptedError
    from training.checkpoint.manager import CheckpointManager
    from training.checkpoint.settings import CheckpointConfig
    from training.distributed.fault_injection import FaultInjector
    from training.run.open_folder import open_run
    from training.distributed.preemption import GracefulStop
    record = {"format": 2, "run_id": "abc", "created": "", "settings": {}, "fingerprints": {}}
    try:
        with GracefulStop() as stop, open_run(sys.argv[1], record) as run:
            with CheckpointManager(run, CheckpointConfig(), FaultInjector()) as store:
                start = store.find_resume_step() or 0
                run.record_start(start)
                print("begun", start, flush=True)
                for step in range(start + 1, 10**6):
                    time.sleep(0.01)
                    run.write_metrics(step, {"loss": 1.0})
                    if stop.is_requested:
                        store.save(step, {"trainable": {"w": jnp.ones(3)}}, {}, wait=True)
                        raise stop.preempted_error(step)
    except PreemptedError as error:
        sys.exit(error.code)
"""


@pytest.mark.slow
def test_a_process_told_to_stop_saves_and_exits_with_75(tmp_path):  # covers P1, P4
    command = [sys.executable, "-c", textwrap.dedent(STOPPED), str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun 0\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(300) == 75
    process.stdout.close()
    run = RunFolder(tmp_path / "run")
    status = run.read_status()
    assert status["state"] == "preempted" and status["code"] == 75 and status["step"] > 0
    assert os.listdir(run.path / "checkpoints") != [] and not (run.path / "LOCK").exists()
    assert (run.path / f"checkpoints/{status['step']}/MANIFEST.json").exists()
    assert run.read_metrics()[-1]["step"] == status["step"]
