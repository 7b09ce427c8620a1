"""What a stop leaves in the rows, the status and the trace of a run."""

import contextlib
import json
import types

import jax.numpy as jnp
import pytest

from arch.weighted_sum import WeightedSum
from errors import CheckpointError, ConfigError, PreemptedError
from settings.cli import load_config
from settings.run_json import add_hash
from training import callbacks, hardware
from training.metrics import StepMetrics
from training.run.open_folder import open_run
from training.run.settings import LogConfig
from training.run.strict_json import decode_json, encode_json
from training.settings import Settings

RECORD = {"format": 2, "run_id": "abc", "created": "", "settings": {}, "fingerprints": {}}


def meter():
    """A meter whose counts of tokens and costs are fakes."""
    device = types.SimpleNamespace(device_kind="", memory_stats=lambda: {"peak_bytes_in_use": 1})
    mesh = types.SimpleNamespace(local_devices=[device], size=1)
    train = types.SimpleNamespace(steps=4, batch_size=1, seq_len=2)
    settings = types.SimpleNamespace(train=train, mixture_parts=lambda: [], model=None)
    counts = dict.fromkeys(("count_tokens", "count_unique_tokens", "count_epochs"), lambda step: 1)
    made = StepMetrics.__new__(StepMetrics)
    made._batches, made._device = types.SimpleNamespace(**counts), device
    made._flops_per_token, made._tokens_per_step, made._peak_flops = 1.0, 2, None
    made._bits_per_byte, made._energy = 1.0, None
    made._pending, made._totals, made._num_steps = [], {}, 0
    made._start, made._paused, made._waited = 0.0, 0.0, 0.0
    del mesh, settings
    return made


def step_metrics(x):
    layers = jnp.array([x, x / 3], jnp.float32)
    return {
        "loss": WeightedSum(jnp.float32(x) / 3, jnp.float32(x)),
        "load": WeightedSum(layers, jnp.ones(2)),
        "halted": WeightedSum(jnp.float32(0), jnp.float32(1)),
    }


def test_a_row_after_a_stop_covers_all_steps_since_the_row_before():
    values = [1.1, 2.7, 3.3, 4.9]
    whole = meter()
    for x in values:
        whole.add(step_metrics(x))
    expected = whole.read(4, 0.0)
    before, after = meter(), meter()
    for x in values[:2]:
        before.add(step_metrics(x))
    stored = decode_json(encode_json(before.window()))  # as a manifest stores it
    after.resume_window(stored)
    for x in values[2:]:
        after.add(step_metrics(x))
    row = after.read(4, 0.0)
    for name in ("loss", "load", "load/layers"):
        assert row[name] == expected[name]
    assert "halted" not in row and after.window() == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PreemptedError("stopped")])
def test_a_stop_before_the_first_step_is_in_the_status(tmp_path, error):
    with pytest.raises(type(error)), open_run(tmp_path, RECORD):
        raise error
    with open_run(tmp_path, RECORD) as run:
        status = run.read_status()
        assert status["state"] == (
            "interrupted" if isinstance(error, KeyboardInterrupt) else "preempted"
        )
        assert status["step"] == 0 and not (tmp_path / "error.log").exists()
        run.record_start(8)
    with pytest.raises(type(error)), open_run(tmp_path, RECORD):
        raise error
    assert run.read_status()["step"] == 8  # which the run had reached
    with open_run(tmp_path, RECORD) as run:
        run.record_start(8)
        run.record_finish(9)
    with pytest.raises(type(error)), open_run(tmp_path, RECORD):
        raise error
    assert run.read_status()["state"] == "finished"


@pytest.mark.parametrize("text", ["3", "0:2", "4:3", "a:b", "1:2:3"])
def test_steps_of_a_profile_that_are_no_range_are_refused(text):
    with pytest.raises(ConfigError, match="log.profile is .*FROM:TO"):
        LogConfig(profile=text)


@pytest.mark.parametrize(("steps", "last"), [(range(1, 9), 4), (range(1, 4), 3)])
def test_a_trace_begins_and_ends_with_its_steps_or_with_the_run(monkeypatch, tmp_path, steps, last):
    calls = []
    profiler = types.SimpleNamespace(
        start_trace=lambda folder, **_: calls.append(("start", folder)),
        stop_trace=lambda: calls.append("stop"),
    )
    monkeypatch.setattr(callbacks.jax, "profiler", profiler)
    watchdog = types.SimpleNamespace(paused=contextlib.nullcontext)
    callback = callbacks.ProfileCallback(tmp_path, (2, 4), watchdog)
    for step in steps:
        callback.before_step(step - 1)
        info = callbacks.StepInfo(step, None, {}, None, step == steps[-1], False, False)
        callback.after_step(info)
        calls.append(step)
    expected = [1, ("start", tmp_path), 2, 3, *([4] if last == 4 else [])]
    expected.insert(expected.index(last), "stop")
    assert calls[: len(expected)] == expected and calls.count("stop") == 1


@pytest.mark.parametrize(
    ("chosen", "installed", "expected"),
    [
        (None, ["libtpu"], "cpu"),
        ("tpu,cpu", ["libtpu"], "tpu,cpu"),  # there is a TPU, or the user chose
        (None, ["libtpu", "jax_cuda13_plugin"], None),
        (None, [], None),
    ],
)
def test_the_extra_tpu_is_silent_without_a_tpu(monkeypatch, chosen, installed, expected):
    config = types.SimpleNamespace(values={"jax_platforms": chosen})
    config.update = config.values.__setitem__
    monkeypatch.setattr(hardware.jax, "config", config)
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: name in installed)
    hardware.ignore_absent_tpu()
    assert config.values["jax_platforms"] == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"format": 99}, "has format 99"), ({"settings": {"seed": 7}}, "is not as it was written")],
)
def test_a_run_json_that_is_not_as_written_is_no_config(tmp_path, changes, problem):
    path = tmp_path / "run.json"
    record = add_hash({"format": 2, "sealed": True, "settings": {"seed": 3}})
    path.write_text(json.dumps(record))
    assert load_config(str(path), Settings).seed == 3
    path.write_text(json.dumps(record | changes))
    with pytest.raises(CheckpointError, match=problem):
        load_config(str(path), Settings)
    path.write_text(json.dumps({"format": 2, "settings": {"seed": 3}, "data": [1]}))
    with pytest.raises(CheckpointError, match="has no section under 'data', must be an object"):
        load_config(str(path), Settings)
