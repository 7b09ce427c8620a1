"""Tests that runs share compiled steps, and that the cache of compiled programs costs no run."""

import os

import jax
import numpy as np
import pytest
from test_program import make

from training import compile_cache
from training.loop import to_device
from training.program import NOT_COMPILED

TINY = {"model__width": 16, "model__depth": 1, "train__steps": 6, "train__batch_size": 2}
TINY |= {"train__seq_len": 16}


def test_runs_that_differ_in_inputs_of_the_step_share_one_compilation():
    a = make(**TINY, optimizer__learning_rate=1e-3)
    b = make(**TINY, optimizer__learning_rate=4e-3, optimizer__warmup=2, seed=3)
    c = make(**TINY, optimizer__learning_rate=4e-3, optimizer__weight_decay=0.0)
    others = [make(**TINY, optimizer__beta2=0.9), make(**(TINY | {"train__steps": 7}))]
    assert a.compile_step() is b.compile_step() is c.compile_step()
    assert all(other.functions is not a.functions for other in others)
    rng = np.random.default_rng(0)
    batch = {n: np.ones(s.shape, s.dtype) for n, s in a.abstract_batch.items()}
    batch["tokens"] = rng.integers(0, 365, batch["tokens"].shape).astype(np.int32)
    norms, rates = [], []
    for program in (a, b, c):
        with jax.set_mesh(program.mesh):
            state = program.init()
            before = jax.device_get(jax.tree.leaves(state.trainable))
            state, metrics = program.compile_train_step()(state, to_device(program, 0, batch))
        after = jax.device_get(jax.tree.leaves(state.trainable))
        norms.append(sum(np.square(x - y).sum() for x, y in zip(before, after, strict=True)))
        rates.append(float(metrics["learning_rate"].sum))
    assert rates == pytest.approx([1e-3, 2e-3, 4e-3], rel=1e-6)
    # Adam's first update is +-rate for each parameter that has a gradient, beside weight decay.
    assert norms[1] / norms[0] == pytest.approx(4, rel=0.3)
    assert norms[2] / norms[0] == pytest.approx(16, rel=0.3)


def test_settings_of_the_run_are_no_settings_of_the_step():
    assert make(**TINY, log__every=3, data__verify=False).functions is make(**TINY).functions
    assert not {"model.*", "train.*", "optimizer.*"} & set(NOT_COMPILED)


@pytest.fixture
def single_device(monkeypatch):
    """A process with one device, whose cache is reset at the end."""
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    yield
    monkeypatch.undo()
    compile_cache.use_compile_cache("")


def cache_folder():
    return jax.config.values["jax_compilation_cache_dir"]


def test_a_folder_that_is_no_cache_of_this_user_is_passed_over(
    single_device, tmp_path, monkeypatch, caplog
):
    compile_cache.use_compile_cache(str(tmp_path / "new/folder"))
    assert cache_folder() == str(tmp_path / "new/folder")
    (tmp_path / "file").write_text("")
    compile_cache.use_compile_cache(str(tmp_path / "file"))
    assert cache_folder() is None and "File exists" in caplog.text
    compile_cache.use_compile_cache("~nosuchuser/cache")  # As where no user has a home folder.
    assert cache_folder() is None and "no home folder; set train.compile_cache" in caplog.text
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    compile_cache.use_compile_cache(str(tmp_path))
    assert cache_folder() is None and "another user owns it" in caplog.text


def test_several_cpu_devices_use_no_cache(tmp_path):
    compile_cache.use_compile_cache(str(tmp_path))
    assert cache_folder() is None
