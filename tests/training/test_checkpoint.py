"""Checkpoints: what was saved comes back bit for bit, or an error says what is wrong with it."""

import errno
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from errors import CheckpointError, DiskError
from training.checkpoint import manifest, restore
from training.checkpoint import store as checkpoint_store
from training.checkpoint.manager import CheckpointManager
from training.checkpoint.param_names import leaf_names, named_leaves
from training.checkpoint.settings import CheckpointConfig
from training.distributed.fault_injection import FaultInjector
from training.run import atomic_io, provenance
from training.run.open_folder import open_run

P = jax.P
ROOT = Path(__file__).parents[2]


class Mixer(nnx.Module):
    def __init__(self, key, width):
        self.w_qkv = nnx.Param(jax.random.normal(key, (width, 3 * width)))
        self.value = nnx.Param(jnp.ones((width,)))  # called as the entry that is left out


class Model(nnx.Module):
    def __init__(self, key, width=8, depth=2):
        self.blocks = nnx.List([Mixer(k, width) for k in jax.random.split(key, depth)])
        self.parts = nnx.Dict(head=nnx.Param(jnp.zeros((width, 4), jnp.bfloat16)))


class Learner(NamedTuple):
    model: Model
    head: Any


class State(NamedTuple):
    step: Any
    trainable: Learner
    optimizer: Any
    window: Any


def new_state(seed=0, width=8, tx=None):
    learner = Learner(Model(jax.random.key(seed), width), None)
    moments = (tx or optax.adam(1e-3)).init(named_leaves(learner))
    window = jnp.full((3,), jnp.nan)  # not a parameter: may be anything
    state = State(jnp.asarray(seed, jnp.int32), learner, moments, window)
    return jax.device_put(state, alone())


def alone():
    return NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), P())


def abstract(state, sharding=None):
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding)  # noqa: E731
    return jax.tree.map(place, state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def opened(path, run_id="abc", attempt=1):
    record = {
        "format": provenance.RUN_FORMAT,
        "run_id": run_id,
        "created": "",
        "settings": {},
        "fingerprints": {},
    }
    run = open_run(path, record)
    run.record_start(0)
    return run


@pytest.fixture
def run(tmp_path):
    with opened(tmp_path / "run") as run:
        yield run


def checkpoints(run, fault="", faults=None, strict=False, **settings):
    cfg = CheckpointConfig(**settings)
    return CheckpointManager(run, cfg, faults or FaultInjector(fault), strict=strict)


def saved(run, *steps, **settings):
    """Good checkpoints at `steps`; their states by step."""
    states = {step: new_state(step) for step in steps}
    with checkpoints(run, **settings) as store:
        for step, state in states.items():
            store.save(step, state, {"hash": f"h{step}"}, wait=True)
    return states


def folders(run):
    names = os.listdir(run.path / "checkpoints")
    return sorted(name for name in names if name != "OWNER.json")


def events(run, kind):
    return [event["message"] for event in run.read_events() if event["event"] == kind]


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


# Names.


def test_leaves_are_named_by_path_without_the_entry_of_variables():
    names = leaf_names(new_state())
    assert names == leaf_names(abstract(new_state()))
    assert "trainable.model.blocks.0.w_qkv" in names and "trainable.model.parts.head" in names
    assert "trainable.model.blocks.1.value" in names  # an attribute of that name
    assert "optimizer.0.mu.model.blocks.0.w_qkv" in names and "step" in names
    assert not any(name.endswith("value.value") for name in names)


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match="a.b"):
        leaf_names({"a.b": 1, "a": {"b": 2}})


# Saving and restoring.


def test_what_is_saved_comes_back_bit_for_bit(run):
    states = saved(run, 5)
    with checkpoints(run) as store:
        assert store.find_resume_step() == 5
        assert_same(store.restore(5, abstract(states[5])), states[5])
        assert store.read_meta(5) == {"hash": "h5"}
    content = atomic_io.read_json(run.path / "checkpoints/5/MANIFEST.json")
    assert content["run_id"] == "abc" and content["step"] == 5 and content["nonfinite_params"] == []
    assert content["leaves"]["trainable.model.parts.head"] == {"shape": [8, 4], "dtype": "bfloat16"}
    assert all(set(e) == {"size", "sha256"} for e in content["files"].values())


def test_state_may_be_donated_at_once(run):
    state = new_state(3)
    expected = jax.tree.map(np.array, state)
    with checkpoints(run) as store:
        store.save(3, state, {})
        step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
        step(state)
    with checkpoints(run) as store:
        assert_same(store.restore(3, abstract(new_state())), expected)


def test_a_checkpoint_is_put_on_another_mesh_bit_for_bit(run):  # covers K12
    assert len(jax.devices()) == 8  # tests/conftest.py
    many = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P("data"))
    table = jax.device_put(jnp.arange(8 * len(jax.devices()), dtype=jnp.float32), many)
    state = {"trainable": {"w": table}}
    with checkpoints(run) as store:
        store.save(1, state, {}, wait=True)
        back = store.restore(1, abstract(state, alone()))
        assert_same(back, state)
        assert len(back["trainable"]["w"].sharding.device_set) == 1
        again = store.restore(1, abstract(state))["trainable"]["w"]
        assert again.sharding == many


def test_parameters_alone_are_restored_for_another_run(run):
    states = saved(run, 5)
    root = run.path / "checkpoints"
    assert restore.newest_step(root) == 5
    learner = restore.restore_subset(root, 5, abstract(new_state(9).trainable), "trainable")
    assert_same(learner, states[5].trainable)
    with pytest.raises(CheckpointError, match=r"w_qkv float32\[8,24\] .expected float32\[4,12\]\)"):
        restore.restore_subset(root, 5, abstract(new_state(0, 4).trainable), "trainable")
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        restore.newest_step(run.path / "nowhere")


@pytest.mark.parametrize("leaving", [SystemExit, RuntimeError])
def test_leaving_right_after_a_save_waits_for_it(run, leaving):  # covers K3
    with pytest.raises(leaving), checkpoints(run) as store:
        store.save(1, new_state(), {})
        raise leaving
    assert restore.newest_step(run.path / "checkpoints") == 1


def test_a_second_interrupt_does_not_wait_and_harms_nothing(run):  # covers P2
    saved(run, 1)
    slow = FaultInjector()
    slow.at_save = lambda step: time.sleep(0.5)
    with pytest.raises(KeyboardInterrupt), checkpoints(run, faults=slow) as store:
        store.save(2, new_state(), {})
        begun = time.perf_counter()
        raise KeyboardInterrupt
    assert time.perf_counter() - begun < 0.4
    store._thread.join()
    with checkpoints(run) as store:
        assert store.find_resume_step() == 1 and folders(run) == ["1"]


def test_zero_means_at_the_end_only():
    with_every = lambda n: CheckpointConfig(every=n)  # noqa: E731
    due = [CheckpointManager.is_due(fake(with_every(n)), 6) for n in (0, 2, 4)]
    assert due == [False, True, False]


def fake(cfg):
    manager = object.__new__(CheckpointManager)
    manager._cfg = cfg
    return manager


# Damage.


def flip(folder):
    path = largest(folder / "state")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = largest(folder / "state")
    path.write_bytes(path.read_bytes()[:-1])


def remove_file(folder):
    largest(folder / "state").unlink()


def remove_manifest(folder):
    (folder / manifest.FILE_NAME).unlink()


def edit_manifest(folder):
    path = folder / manifest.FILE_NAME
    path.write_text(path.read_text().replace('"hash": "h', '"hash": "g'))


def cut_manifest(folder):
    path = folder / manifest.FILE_NAME
    path.write_text(path.read_text()[:-20])


def empty_state(folder):
    shutil.rmtree(folder / "state")


DAMAGE = [flip, truncate, remove_file, remove_manifest, edit_manifest, cut_manifest, empty_state]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_is_moved_away_and_the_one_before_used(run, damage):  # covers K4
    states = saved(run, 1, 2)
    damage(run.path / "checkpoints/2")
    with (
        pytest.raises(CheckpointError, match="checkpoints"),
        checkpoints(run, strict=True) as store,
    ):
        store.find_resume_step()
    assert folders(run) == ["1", "2"]
    with pytest.raises(CheckpointError):
        restore.restore(run.path / "checkpoints", 2, abstract(states[2]))
    with checkpoints(run) as store:
        assert store.find_resume_step() == 1
        assert folders(run) == ["1", "corrupt"]
        assert os.listdir(run.path / "checkpoints/corrupt") == ["2"]
        assert "checkpoint 2 is damaged" in events(run, "checkpoint_fallback")[0]
        assert_same(store.restore(1, abstract(states[1])), states[1])
        store.save(2, new_state(7), {}, wait=True)  # covers K15: the way goes on over it
        assert store.find_resume_step() == 2


@pytest.mark.parametrize("damage", [flip, remove_manifest])
def test_when_none_is_good_the_run_does_not_begin_anew(run, damage):  # covers K5
    saved(run, 1, 2)
    for step in (1, 2):
        damage(run.path / f"checkpoints/{step}")
    for _ in range(2):  # nor the next time
        with checkpoints(run) as store, pytest.raises(CheckpointError, match="2: .*; 1: ") as error:
            store.find_resume_step()
    assert error.value.code == 66 and "\n" not in str(error.value)
    shutil.rmtree(run.path / "checkpoints/1")
    os.makedirs(run.path / "checkpoints/corrupt")
    os.rename(run.path / "checkpoints/2", run.path / "checkpoints/corrupt/2")
    with checkpoints(run) as store, pytest.raises(CheckpointError):
        store.find_resume_step()


def test_damage_after_the_search_is_found_at_the_restore(run):
    states = saved(run, 1, 2)
    with checkpoints(run) as store:
        assert store.find_resume_step() == 2
        flip(run.path / "checkpoints/1")
        with pytest.raises(CheckpointError, match="other content"):
            store.restore(1, abstract(states[1]))


def test_without_verify_sizes_are_all_that_counts(run):
    saved(run, 1)
    flip(run.path / "checkpoints/1")
    with checkpoints(run, verify=False) as store:
        assert store.find_resume_step() == 1
        truncate(run.path / "checkpoints/1")
        with pytest.raises(CheckpointError, match="bytes, not"):
            store.find_resume_step()


def test_strays_are_ignored_and_kept(run):  # covers K6
    root = run.path / "checkpoints"
    saved(run, 1)
    (root / "9").mkdir()
    (root / "8").write_text("a file")
    (root / "7").symlink_to(root / "1")  # covers S5
    (root / "007").mkdir()
    (root / "notes.txt").write_text("mine")
    (root / "5.orbax-checkpoint-tmp").mkdir()
    before = folders(run)
    with checkpoints(run, keep=1) as store:
        assert store.find_resume_step() == 1
        assert folders(run) == before
        store.save(9, new_state(), {}, wait=True)  # in the way of a stray
        assert store.find_resume_step() == 9 and os.listdir(root / "corrupt") == ["9"]
    assert set(before) - {"1"} <= set(folders(run)) and (root / "7").is_symlink()


def test_a_step_is_ordered_by_its_number_not_its_time(run):  # covers K16
    saved(run, 9, 10)
    os.utime(run.path / "checkpoints/10", (1, 1))
    with checkpoints(run) as store:
        assert store.find_resume_step() == 10
    os.rename(run.path / "checkpoints/10", run.path / "checkpoints/11")  # a copy with another name
    with checkpoints(run) as store:
        assert store.find_resume_step() == 9
    assert "holds step 10" in events(run, "checkpoint_fallback")[0]


def test_what_a_kill_left_is_cleared_away(run):  # covers K1
    saved(run, 1)
    root = run.path / "checkpoints"
    (root / "2.0a1b.writing/state.orbax-checkpoint-tmp").mkdir(parents=True)
    (root / "1.0a1b.discarded").mkdir()
    shutil.copytree(root / "1", root / "4.replaced")  # killed between two renames
    shutil.copytree(root / "1", root / "1.replaced")
    outside = run.path / "outside"
    outside.mkdir()
    (root / "3.0a1b.writing").symlink_to(outside)
    with checkpoints(run) as store:
        assert folders(run) == ["1", "3.0a1b.writing", "4"] and outside.is_dir()
        assert store.find_resume_step() == 1


# What does not fit.


def misfit(run, wanted):
    states = saved(run, 5)
    with checkpoints(run) as store, pytest.raises(CheckpointError) as error:
        store.restore(5, wanted(states[5]))
    assert error.value.code == 66 and "\n" not in str(error.value)
    return str(error.value)


def test_another_width_is_named_leaf_by_leaf(run):  # covers K7
    text = misfit(run, lambda s: abstract(new_state(5, width=4)))
    assert "trainable.model.blocks.0.w_qkv float32[8,24] (expected float32[4,12])" in text
    assert "and 5 more" in text and text.count("(expected") == 10


def test_missing_and_extra_leaves_are_named(run):  # covers K9
    other = {"step": new_state().step, "scale": jnp.ones(3)}
    text = misfit(run, lambda s: abstract(other, alone()))
    assert "1 not in it: scale" in text and "17 only in it: trainable.model" in text


def test_another_dtype_is_refused(run):  # covers K10
    text = misfit(run, lambda s: abstract(s._replace(step=jnp.zeros((), jnp.float32)), alone()))
    assert "step int32[] (expected float32[])" in text


def test_another_optimizer_is_refused(run):  # covers K11
    text = misfit(run, lambda s: abstract(new_state(5, tx=optax.sgd(0.1, momentum=0.9))))
    assert "optimizer.0.mu" in text and "optimizer.0.trace" in text


def test_leaves_without_a_sharding_are_refused(run):
    state = saved(run, 5)[5]
    bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    with checkpoints(run) as store, pytest.raises(ValueError, match="no sharding"):
        store.restore(5, bare)


def test_a_newer_format_is_refused_not_passed_over(run, monkeypatch):  # covers K17
    saved(run, 1)
    monkeypatch.setattr(manifest, "FORMAT", manifest.FORMAT + 1)
    saved(run, 2)
    monkeypatch.undo()
    with checkpoints(run) as store:
        for read in (store.find_resume_step, lambda: store.read_meta(2)):
            with pytest.raises(CheckpointError) as error:
                read()
            text = str(error.value)
            assert "format 3, written by isoflop" in text and "reads format 2; use the" in text


def test_the_format_before_is_refused_with_both_numbers_and_nothing_is_rewritten(run, monkeypatch):
    root = run.path / "checkpoints"
    monkeypatch.setattr(manifest, "FORMAT", 1)
    states = saved(run, 1, 2)
    monkeypatch.undo()
    before = contents(root)
    with checkpoints(run, keep=1) as store:
        for read in (
            store.find_resume_step,
            store.newest_step,
            lambda: store.restore(2, abstract(states[2])),
            lambda: restore.newest_step(root),
        ):
            with pytest.raises(CheckpointError) as error:
                read()
            text = str(error.value)
            assert f"{root}/2 has checkpoint format 1, written by isoflop" in text
            assert "this version reads format 2; docs/renames.json lists the new names" in text
            assert "or another run folder" in text and "\n" not in text
    assert contents(root) == before


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_flipped_bit_is_no_newer_format(run):
    state = saved(run, 1, 2)[1]
    path = run.path / "checkpoints/2" / manifest.FILE_NAME
    text = path.read_text()
    current = f'"format": {manifest.FORMAT}'
    assert current in text
    deep = json.dumps(json.loads(text) | {"deep": functools.reduce(lambda x, _: [x], range(600))})
    for change in (text.replace(current, '"format": 9'), deep):
        path.write_text(change)
        assert (
            manifest.inspect_folder(path.parent, check_hashes=False).problem
            == f"{manifest.FILE_NAME} is damaged"
        )
    path.unlink()
    path.mkdir()
    with checkpoints(run) as store:
        assert store.find_resume_step() == 1
        assert_same(store.restore(1, abstract(state)), state)


def test_a_run_that_ended_before_it_saved_leaves_the_folder_free(run, tmp_path):
    saved(run, 1)
    with opened(tmp_path / "other", run_id="def") as other:
        checkpoints(other).close()
        (other.path / "checkpoints/3.ab-1.writing").mkdir()
    with opened(tmp_path / "other2", run_id="ghi") as third:
        shutil.move(other.path / "checkpoints", third.path / "checkpoints")
        with checkpoints(third) as store:
            assert store.find_resume_step() is None
        assert os.listdir(third.path / "checkpoints") == ["OWNER.json"]
        saved(third, 1)


def test_a_damaged_marker_is_made_again_where_all_checkpoints_are_ours(run, tmp_path):
    saved(run, 1)
    marker = run.path / "checkpoints/OWNER.json"
    marker.write_text('{"run_id": "ab')
    with checkpoints(run) as store:
        assert store.find_resume_step() == 1
    marker.write_text("{")
    with opened(tmp_path / "other", run_id="def") as other:
        shutil.copytree(run.path / "checkpoints", other.path / "checkpoints")
        with pytest.raises(CheckpointError, match="is of run abc; use another"):
            checkpoints(other)


def test_checkpoints_of_another_run_are_refused(run, tmp_path):  # covers K18
    state = saved(run, 1)[1]
    with opened(tmp_path / "other", run_id="def") as other:
        shutil.copytree(run.path / "checkpoints/1", tmp_path / "copy")
        shutil.copytree(run.path / "checkpoints", other.path / "checkpoints")
        with pytest.raises(CheckpointError, match="of run abc, not of this run .def"):
            checkpoints(other)
        (other.path / "checkpoints/OWNER.json").unlink()
        with pytest.raises(CheckpointError, match="their run is unknown"):
            checkpoints(other)
        shutil.rmtree(other.path / "checkpoints")
        with checkpoints(other) as store:
            shutil.copytree(tmp_path / "copy", other.path / "checkpoints/1")
            with pytest.raises(CheckpointError, match="of run abc"):
                store.restore(1, abstract(state))


def test_a_missing_item_is_refused_for_going_on_only(run):  # covers K19
    state = new_state()
    with checkpoints(run) as store:
        store.save(1, {"trainable": state.trainable}, {}, wait=True)  # neither optimizer nor data
        with pytest.raises(CheckpointError, match="not in it: .*optimizer"):
            store.restore(1, abstract(state))
        with pytest.raises(CheckpointError, match="lacks data_hash, .*init_from"):
            store.read_meta(1, ["data_hash"])
    root = run.path / "checkpoints"
    assert_same(
        restore.restore_subset(root, 1, abstract(state.trainable), "trainable"), state.trainable
    )


# Keeping.


def test_the_newest_good_ones_are_kept(run):
    saved(run, 1, 2, 3, 10, keep=2)
    assert folders(run) == ["10", "3"]


def test_a_resume_deletes_what_a_kill_before_the_deletion_left(run):
    saved(run, 1, 2, 3, keep=5)
    with checkpoints(run, keep=2) as store:
        assert store.find_resume_step() == 3
    assert folders(run) == ["2", "3"]


def test_nothing_is_deleted_before_the_new_one_is_verified(run, monkeypatch):  # covers K14
    saved(run, 1, keep=1)
    forget = manifest.drop_page_cache
    monkeypatch.setattr(manifest, "drop_page_cache", lambda folder: (flip(folder), forget(folder)))
    with checkpoints(run, keep=1) as store, pytest.raises(DiskError, match="does not read back"):
        store.save(2, new_state(), {}, wait=True)
    assert folders(run) == ["1"] and restore.newest_step(run.path / "checkpoints") == 1


def test_saving_a_step_again_replaces_it(run):  # covers K15
    saved(run, 5, 10, 15, keep=5)
    newer = new_state(99)
    with checkpoints(run, keep=5) as store:
        store.save(10, newer, {"hash": "newer"}, wait=True)  # after going back to 5
        assert_same(store.restore(10, abstract(newer)), newer)
        assert store.read_meta(10) == {"hash": "newer"}
        assert store.find_resume_step() == 10  # 15 was of the way that was left
    assert folders(run) == ["10", "5"]


def test_a_checkpoint_with_nonfinite_parameters_is_marked(run):  # covers N24
    states = saved(run, 1, 2, keep=1)
    bad = new_state(3)
    bad.trainable.model.blocks[0].w_qkv[...] = (
        bad.trainable.model.blocks[0].w_qkv[...].at[0, 0].set(jnp.nan)
    )
    with checkpoints(run, keep=1) as store:
        store.save(3, bad, {}, wait=True)
        assert folders(run) == ["2", "3"]  # the last good one stays
        assert "trainable.model.blocks.0.w_qkv" in events(run, "nonfinite_params")[0]
        assert (
            store.find_resume_step() == 2 and "not finite" in events(run, "checkpoint_fallback")[0]
        )
        store.save(2, bad, {}, wait=True)  # nor is it overwritten
        assert_same(store.restore(2, abstract(states[2])), states[2])
        store.save(3, new_state(4), {}, wait=True)
        assert store.find_resume_step() == 3 and folders(run) == ["3"]


def test_a_run_that_has_only_tainted_ones_does_not_go_on(run):
    bad = new_state()
    bad.trainable.model.blocks[0].value[...] = bad.trainable.model.blocks[0].value[...] / 0
    with checkpoints(run) as store:
        store.save(3, bad, {}, wait=True)
        with pytest.raises(CheckpointError, match="1 parameters are not finite"):
            store.find_resume_step()
        assert store.newest_step() is None


# A disk that fails.  covers K13


class Full:
    """The disk is full while these steps are saved."""

    def __init__(self, *steps):
        self.steps = steps

    def at_save(self, step):
        if step in self.steps:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_one_failed_save_is_told_and_tried_again(run):
    saved(run, 1, 2)
    with checkpoints(run, faults=Full(3, 6), every=10) as store:
        store.save(3, new_state(), {})
        store._thread.join()
        assert store.check_async_save() and folders(run) == [
            "2"
        ]  # room was made: but for the newest
        assert not store.check_async_save() and not store.is_due(4)  # it is told once
        store.save(4, new_state(), {})
        store.wait_until_finished()
        assert not store.is_due(5) and store.newest_step() == 4
        store.save(6, new_state(), {})
        store._thread.join()
        assert store.check_async_save()  # not the second in a row
    assert "No space left" in events(run, "disk_error")[0]


@pytest.mark.parametrize("wait", [True, False])
def test_a_disk_that_stays_full_ends_the_run(run, wait):
    states = saved(run, 1, 2)
    full = checkpoints(run, "enospc@3")
    with pytest.raises(DiskError, match="No space left.*intact") as error, full as store:
        store.save(3, new_state(), {}, wait=wait)
        store.save(4, new_state(), {}, wait=wait)
        store._thread.join()
        store.check_async_save()
    assert error.value.code == 74 and folders(run) == ["2"]
    with checkpoints(run) as store:
        assert_same(store.restore(2, abstract(states[2])), states[2])


def test_stragglers_of_a_failed_save_cannot_reach_the_next(run):
    """orbax gives up at the first error, while its other writes go on for a moment."""
    root, used, late = run.path / "checkpoints", [], FaultInjector()

    def at_save(step):
        used.append(set(root.glob("*.writing")))
        if len(used) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        straggler = min(used[0]) / "state/ocdbt.process_0/manifest.ocdbt"
        straggler.parent.mkdir(parents=True, exist_ok=True)
        straggler.write_bytes(b"of the failed save")

    late.at_save = at_save
    state = new_state(3)
    with checkpoints(run, faults=late) as store:
        store.save(3, state, {}, wait=True)
        assert_same(store.restore(3, abstract(state)), state)
    assert len(used) == 2 and not used[0] & used[1]
    assert folders(run) == ["3"]  # what it left is cleared away


def test_a_folder_that_is_still_written_to_is_cleared_in_the_end(run, monkeypatch):
    remove, tries = checkpoint_store.remove_tree, []

    def busy(path, root):
        tries.append(path)
        if len(tries) < 3:
            raise DiskError("Directory not empty")
        remove(path, root)

    monkeypatch.setattr(checkpoint_store, "remove_tree", busy)
    with checkpoints(run, "enospc@3") as store, pytest.raises(DiskError, match="No space"):
        store.save(3, new_state(), {}, wait=True)
    assert len(tries) == 4 and folders(run) == []  # three for the first save, one for the second


def test_a_failure_at_the_end_is_no_success(run):
    with pytest.raises(DiskError), checkpoints(run, "enospc@3") as store:
        store.save(3, new_state(), {})


def test_the_error_that_ends_a_run_is_not_hidden_by_a_full_disk(run):
    with pytest.raises(RuntimeError), checkpoints(run, "enospc@3") as store:
        store.save(3, new_state(), {})
        raise RuntimeError
    assert events(run, "disk_error")


def test_files_that_may_not_grow_are_a_disk_error(run, caplog, monkeypatch):
    unraisable = []  # what the writes that go on after the first failure report
    monkeypatch.setattr(sys, "unraisablehook", lambda event: unraisable.append(event.exc_value))
    states = saved(run, 1)
    w = jax.random.normal(jax.random.key(0), (256, 256))
    noise = {"trainable": {f"w{i}": w for i in range(20)}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with checkpoints(run) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
        try:
            with pytest.raises(DiskError, match="too large") as error:
                store.save(2, noise, {}, wait=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        message = str(error.value).replace(str(run.path), "RUN")
        assert message.startswith("checkpoint not saved in RUN/checkpoints: Failed to write ")
        assert "\n" not in message and "/checkpoints/2" not in message
        assert not unraisable
        sys.unraisablehook(SimpleNamespace(exc_value=ValueError("another")))
        assert len(unraisable) == 1
        assert not [r for r in caplog.records if "orbax" in r.pathname]  # its tracebacks
        assert folders(run) == ["1"]
        assert_same(store.restore(1, abstract(states[1])), states[1])
        store.save(2, noise, {}, wait=True)
        assert store.find_resume_step() == 2


def test_a_folder_that_cannot_be_made_is_a_disk_error_at_once(run, monkeypatch):
    saved(run, 1)
    with checkpoints(run) as store:
        monkeypatch.setattr(store.store, "temporary_folder", lambda step: run.path / "run.json/x")
        begun = time.perf_counter()
        with pytest.raises(DiskError, match="run.json"):
            store.save(2, new_state(), {}, wait=True)
        assert time.perf_counter() - begun < 5


# The price.


def test_sealing_is_not_paid_by_the_training_thread(run, monkeypatch):
    write = manifest.write
    monkeypatch.setattr(manifest, "write", lambda *a: (time.sleep(0.5), write(*a)))
    with checkpoints(run) as store:
        store.save(1, new_state(), {})
        store.wait_until_finished()
        stall = store.save(2, new_state(), {})
        assert stall < 0.4 and stall == store.save_seconds["stall"]
        assert not store.check_async_save()
        store.wait_until_finished()
        assert store.save_seconds["commit"] >= 0.5


# A process that dies.

KILLED = """
    import sys, jax.numpy as jnp
    from training.checkpoint.manager import CheckpointManager
    from training.checkpoint.settings import CheckpointConfig
    from training.distributed.fault_injection import FaultInjector
    from training.run.open_folder import open_run
    record = {"format": 2, "run_id": "abc", "created": "", "settings": {}, "fingerprints": {}}
    with open_run(sys.argv[1], record) as run:
        run.record_start(0)
        faults = FaultInjector("kill@save:5")
        with CheckpointManager(run, CheckpointConfig(), faults) as store:
            for step in (4, 5):
                run.write_metrics(step, {"loss": 1.0})
                store.save(step, {"trainable": {"w": jnp.full((64, 64), step)}}, {})
            run.write_metrics(6, {"loss": 1.0})
"""


@pytest.mark.slow
def test_a_kill_while_saving_costs_that_save_only(tmp_path):  # covers K1, P5
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, timeout=300, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = os.listdir(tmp_path / "run/checkpoints")
    assert sum(name.endswith(".writing") for name in left) == 1
    assert (tmp_path / "run/LOCK").exists()
    with opened(tmp_path / "run") as run:
        assert "that process has ended" in events(run, "lock_taken_over")[0]
        with checkpoints(run) as store:
            assert store.find_resume_step() == 4 and folders(run) == ["4"]
            wanted = {"trainable": {"w": jnp.full((64, 64), 4)}}
            assert_same(store.restore(4, abstract(jax.device_put(wanted, alone()))), wanted)
