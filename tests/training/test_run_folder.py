"""The run folder: one owner, the same run or a refusal, and files that stay readable."""

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import CheckpointError, ConfigError, DataError, DiskError, LockedError, PreemptedError
from eval.load_run import load_run
from hub.run import export_run
from training.run import atomic_io, lock, provenance, run_paths, strict_json
from training.run.folder import RunFolder, read_metrics
from training.run.open_folder import open_run

SETTINGS = {"model": {"width": 64, "layers": ["attention+mlp"]}, "train": {"steps": 10}}


def record(**changes):
    """A small example of what `make_run_record` returns."""
    base = {
        "format": provenance.RUN_FORMAT,
        "run_id": "abc123",
        "created": "2026-01-01T00:00:00+00:00",
        "settings": SETTINGS,
        "fingerprints": {"data": "d" * 64, "tokenizer": "t" * 64},
        "environment": {"XLA_FLAGS": "-a"},
        "packages": {"jax": "0.10.2"},
        "mesh": {"data": 8},
    }
    return base | changes


def begun(path, step=0, **changes):
    """An attempt that began and was left."""
    with open_run(path, record(**changes)) as run:
        run.record_start(step)
    return run


def foreign_lock(path, **changes):
    """A LOCK as another process wrote it."""
    path.mkdir(exist_ok=True)
    owner = lock.owner_record("theirs") | {"since": "2026-01-01"} | changes
    (path / "LOCK").write_text(json.dumps(owner))
    return path / "LOCK"


def kinds(run):
    return [event["event"] for event in run.read_events()]


# The lock.  covers P5


def test_second_owner_is_told_who_holds_the_lock(tmp_path):
    with open_run(tmp_path, record()):
        with pytest.raises(LockedError, match=f"{socket.gethostname()}:{os.getpid()} since 2") as e:
            open_run(tmp_path, record())
        assert e.value.code == 73
    open_run(tmp_path, record()).close()
    assert not (tmp_path / "LOCK").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pid": 2**22 + 1}, "that process has ended"),
        ({"pid": os.getppid(), "start": "1"}, "another process has that number now"),
    ],
)
def test_lock_of_a_dead_process_here_is_taken_over_with_a_warning(tmp_path, changes, reason):
    foreign_lock(tmp_path, **changes)
    with open_run(tmp_path, record()) as run:
        (event,) = run.read_events()
        assert event["event"] == "lock_taken_over" and reason in event["message"]


@pytest.mark.parametrize(
    "changes", [{"host": "elsewhere"}, {"boot": "another"}, {"namespace": "pid:[1]"}]
)
def test_lock_of_another_machine_is_judged_by_its_heartbeat(tmp_path, changes):
    path = foreign_lock(tmp_path, pid=2**22 + 1, **changes)
    with pytest.raises(LockedError):
        open_run(tmp_path, record())
    old = time.time() - lock.STALE_SECONDS - 5
    os.utime(path, (old, old))
    with open_run(tmp_path, record()) as run:
        assert "no heartbeat" in run.read_events()[0]["message"]


def test_lock_without_content_is_about_to_get_some_or_dead(tmp_path):
    (tmp_path / "LOCK").write_text("")
    with pytest.raises(LockedError, match="being locked"):
        open_run(tmp_path, record())
    os.utime(tmp_path / "LOCK", (1, 1))
    open_run(tmp_path, record()).close()


def test_one_of_many_wins_a_dead_lock(tmp_path):
    for _ in range(20):
        foreign_lock(tmp_path, pid=2**22 + 1)
        locks, won = [lock.RunLock(tmp_path / "LOCK") for _ in range(16)], []
        gate = threading.Barrier(len(locks))

        def contend(mine, gate=gate, won=won):
            gate.wait()
            with contextlib.suppress(LockedError):
                mine.acquire()
                won.append(mine)

        threads = [threading.Thread(target=contend, args=(mine,)) for mine in locks]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(won) == 1 and won[0]._is_ours()
        won[0].release()
        assert os.listdir(tmp_path) == []


def test_heartbeat_goes_on_and_notices_a_new_owner(tmp_path):
    mine = lock.RunLock(tmp_path / "LOCK", heartbeat_seconds=0.02)
    mine.acquire()
    os.utime(tmp_path / "LOCK", (1, 1))
    wait_for(lambda: (tmp_path / "LOCK").stat().st_mtime > 1)
    mine.check()
    foreign_lock(tmp_path, host="elsewhere", pid=7)
    wait_for(lambda: mine.is_lost)
    with pytest.raises(LockedError, match="elsewhere:7"):
        mine.check()
    mine.release()
    assert (tmp_path / "LOCK").exists()  # it is not ours any more


def test_a_folder_that_was_moved_is_not_made_again(tmp_path):
    folder = tmp_path / "a"
    with (
        pytest.raises(DiskError, match="a was moved or removed"),
        open_run(folder, record()) as run,
    ):
        run.record_start(0)
        folder.rename(tmp_path / "b")
        run.write_metrics(1, {"loss": 1.0})
    assert not folder.exists()


def test_a_lock_that_was_removed_is_named(tmp_path):
    mine = lock.RunLock(tmp_path / "LOCK", heartbeat_seconds=0.02)
    mine.acquire()
    (tmp_path / "LOCK").unlink()
    wait_for(lambda: mine.is_lost)
    with pytest.raises(LockedError, match="LOCK was removed during the run"):
        mine.check()
    mine.release()


def test_an_owner_that_lost_the_lock_stops_writing(tmp_path):
    with pytest.raises(LockedError, match="elsewhere:7"), open_run(tmp_path, record()) as run:
        run.record_start(0)
        run.write_metrics(1, {"loss": 1.0})
        foreign_lock(tmp_path, host="elsewhere", pid=7)
        run.lock.is_lost = True  # as the heartbeat notes
        before = snapshot(tmp_path)
        run.write_metrics(2, {"loss": 1.0})
    assert snapshot(tmp_path) == before


def test_a_disk_that_is_away_for_a_moment_does_not_end_the_heartbeat(tmp_path, monkeypatch):
    mine, real, away = (
        lock.RunLock(tmp_path / "LOCK", heartbeat_seconds=0.02),
        lock.read_json,
        [True] * 3,
    )
    monkeypatch.setattr(lock, "read_json", lambda *a: real(*a) if not away else fail(away.pop()))
    away.clear()
    mine.acquire()
    away += [True] * 3
    wait_for(lambda: not away)
    os.utime(tmp_path / "LOCK", (1, 1))
    wait_for(lambda: (tmp_path / "LOCK").stat().st_mtime > 1)
    mine.check()
    mine.release()


def test_who_cannot_beat_for_too_long_has_lost_the_lock(tmp_path, monkeypatch):
    mine = lock.RunLock(tmp_path / "LOCK", heartbeat_seconds=0.02, stale_seconds=0.2)
    mine.acquire()
    monkeypatch.setattr(lock, "read_json", fail)
    wait_for(lambda: mine.is_lost)
    monkeypatch.undo()
    mine.release()


def fail(*_):
    raise DiskError("LOCK: stale file handle")


@pytest.mark.parametrize("name", ["LOCK", "run.json", "status.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, name, kind):
    begun(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if kind == "link":
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    else:
        os.mkfifo(tmp_path / name)
    if (name, kind) == ("LOCK", "pipe"):
        os.utime(tmp_path / name, (1, 1))  # old: a dead owner's
    if (name, kind) in {("LOCK", "pipe"), ("status.json", "pipe")}:
        open_run(tmp_path, record()).close()
        return
    with pytest.raises((CheckpointError, DiskError), match=name):
        open_run(tmp_path, record())


def wait_for(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come true in 5 s")


def test_a_refused_run_leaves_no_lock(tmp_path):
    begun(tmp_path)
    with pytest.raises(ConfigError):
        open_run(tmp_path, record(settings={}))
    assert not (tmp_path / "LOCK").exists()


# The same run or a refusal.


def test_the_same_command_goes_on_under_the_old_name(tmp_path):
    first = begun(tmp_path)
    assert not first.is_resumed and first.attempt == 1
    with open_run(tmp_path, record(run_id="fresh", created="later")) as run:
        assert run.is_resumed and run.attempt == 2
        assert run.record["run_id"] == "abc123" and run.record["created"].startswith("2026")
        run.record_start(5)
    assert kinds(run) == ["start", "resume"]


def test_other_settings_are_refused_key_by_key(tmp_path):  # covers P7
    begun(tmp_path)
    changed = {"model": {"width": 128, "layers": ["mamba+mlp"]}, "train": {"steps": 20}, "x": 1}
    with pytest.raises(ConfigError) as error:
        open_run(tmp_path, record(settings=changed), resumable=["train.steps"])
    text = str(error.value)
    assert "model.width 64 -> 128" in text and "model.layers" in text and "x (none) -> 1" in text
    assert "train.steps" not in text and error.value.code == 2 and "\n" not in text


def test_settings_on_the_list_may_change_and_are_recorded(tmp_path):
    begun(tmp_path)
    changed = SETTINGS | {"train": {"steps": 20}, "log": {"every": 5}}
    with open_run(tmp_path, record(settings=changed), resumable=["train.steps", "log.*"]) as run:
        run.record_start(5)
    (event,) = [e for e in run.read_events() if e["event"] == "settings_changed"]
    assert event["changes"] == {"train.steps": [10, 20], "log.every": [None, 5]}
    assert atomic_io.read_json(tmp_path / "run.json")["settings"] == changed


def test_a_finished_run_says_so_and_stays_as_it_is(tmp_path):  # covers P6
    with open_run(tmp_path, record()) as run:
        assert run.finished_step is None
        run.record_start(0)
        run.record_finish(10)
    before = snapshot(tmp_path)
    with open_run(tmp_path, record()) as run:
        assert run.finished_step == 10
    assert snapshot(tmp_path) == before


def snapshot(path):
    return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("environment", {"XLA_FLAGS": "-b"}, "environment_changed"),  # covers C15
        ("packages", {"jax": "0.12.0"}, "environment_changed"),
        ("mesh", {"data": 2}, "devices_changed"),
    ],
)
def test_other_surroundings_are_an_event(tmp_path, key, value, kind):
    begun(tmp_path)
    with open_run(tmp_path, record(**{key: value})) as run:
        run.record_start(3)
    assert kinds(run) == ["start", "resume", kind]
    assert key in run.read_events()[-1]["message"]


@pytest.mark.parametrize("which", ["data", "tokenizer"])  # covers D6, D7
def test_other_data_is_refused_unless_allowed(tmp_path, which):
    begun(tmp_path)
    other = record(fingerprints=record()["fingerprints"] | {which: "e" * 64})
    with pytest.raises(DataError, match=f"{which} .*allow_changed") as error:
        open_run(tmp_path, other)
    assert error.value.code == 65
    with open_run(tmp_path, other, allow_changed=True) as run:
        run.record_start(3)
    assert kinds(run)[-1] == "data_changed"


def test_newer_or_damaged_run_json_is_refused(tmp_path):  # covers K17
    begun(tmp_path, format=provenance.RUN_FORMAT + 1)
    with pytest.raises(CheckpointError, match=f"format {provenance.RUN_FORMAT + 1}"):
        open_run(tmp_path, record())
    for text in ('{"format": 2', "[]", '{"format": 2}', '{"format": "1"}', '{"format": NaN}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(CheckpointError, match="run.json"):
            open_run(tmp_path, record())
    (tmp_path / "run.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(CheckpointError, match="a key occurs twice"):
        atomic_io.read_json(tmp_path / "run.json")


def test_the_format_before_is_refused_with_both_numbers_and_nothing_is_rewritten(tmp_path):
    begun(tmp_path, format=1, settings={"model": {"first": []}})
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError) as error:
        open_run(tmp_path, record())
    text = str(error.value)
    assert error.value.code == 66 and "\n" not in text
    assert f"{tmp_path}/run.json has format 1, this version reads format 2; docs/renames" in text
    assert "use the version that wrote it, or another run folder" in text
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("read", [load_run, lambda path: export_run(path, path / "exported")])
def test_commands_that_read_a_run_refuse_the_format_before(tmp_path, read):
    begun(tmp_path, format=1)
    with pytest.raises(CheckpointError, match="has format 1, this version reads format 2; docs/"):
        read(tmp_path)


def test_what_is_no_record_is_refused(tmp_path):
    begun(tmp_path)
    tree = json.loads((tmp_path / "run.json").read_text())
    del tree["created"], tree["sealed"], tree["sha256"]
    (tmp_path / "run.json").write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="not the record of a run"):
        open_run(tmp_path, record())


@pytest.mark.parametrize("text", ['{"attempt": "1"}', '{"attempt"', "\udcff"])
def test_a_damaged_status_is_as_none(tmp_path, text):
    begun(tmp_path)
    begun(tmp_path)
    (tmp_path / "status.json").write_bytes(text.encode(errors="surrogateescape"))
    with open_run(tmp_path, record()) as run:
        assert run.attempt == 3 and run.finished_step is None  # as the events tell


def test_damaged_events_do_not_keep_a_run_from_going_on(tmp_path):
    begun(tmp_path)
    path = tmp_path / "events.jsonl"
    path.write_text("{" + path.read_text())
    with open_run(tmp_path, record()) as run:
        assert run.attempt == 2
    (tmp_path / "status.json").write_text("{")
    open_run(tmp_path, record()).close()


def test_a_run_stays_what_it_began_with(tmp_path):
    start = {"init_from": "a", "init_from_sha256": 64 * "1"}
    begun(tmp_path, flags=start)
    assert begun(tmp_path, flags={"init_from": "a"}).attempt == 2
    assert begun(tmp_path, flags={"config": "x"}).record["flags"] == {"config": "x", **start}
    with pytest.raises(ConfigError, match="started from --init_from=a, not from b; leave it out"):
        open_run(tmp_path, record(flags={"init_from": "b"}))
    begun(tmp_path / "other")
    with pytest.raises(ConfigError, match="started without --init_from, not from b"):
        open_run(tmp_path / "other", record(flags={"init_from": "b"}))


# How a run ends.


def test_status_says_how_the_run_ended(tmp_path):
    url = "https://me:hunter2@host/x"
    cases = [
        (PreemptedError("stopped"), "preempted", 75),
        (DiskError("full"), "failed", 74),
        (ValueError(f"bad {url}"), "failed", 1),
        (KeyboardInterrupt(), "interrupted", 130),
    ]
    for error, state, code in cases:
        with pytest.raises(type(error)), open_run(tmp_path, record()) as run:
            run.record_start(0)
            assert run.read_status()["state"] == "running"
            run.write_metrics(7, {"loss": 1.0})
            raise error
        status = run.read_status()
        assert (status["state"], status["code"], status["step"]) == (state, code, 7)
    text = (tmp_path / "error.log").read_text()
    assert "Traceback" in text and "ValueError" in text and "PreemptedError" not in text
    assert "hunter2" not in text + (tmp_path / "events.jsonl").read_text()  # covers S10


def test_an_error_before_the_run_began_leaves_the_status_alone(tmp_path):
    with open_run(tmp_path, record()) as run:
        run.record_start(0)
        run.record_finish(10)
    with pytest.raises(ConfigError), open_run(tmp_path, record()) as run:
        raise ConfigError("train.steps")
    assert run.read_status()["state"] == "finished"


# Metrics.


def losses(path):
    return {row["step"]: row["loss"] for row in read_metrics(path / "metrics.jsonl")}


def test_metrics_beyond_the_restored_step_are_superseded(tmp_path):  # covers K21
    with open_run(tmp_path, record()) as run:
        run.record_start(0)
        for step in (2, 4, 6, 7, 8):
            run.write_metrics(step, {"loss": float(step)})
    with open_run(tmp_path, record()) as run:
        run.record_start(5)
        assert losses(tmp_path) == {2: 2, 4: 4}
        run.write_metrics(8, {"loss": 80.0})
        run.write_metrics(10, {"loss": 100.0})
        run.write_metrics(10, {"valid": 1.5})  # one row a step
    series = read_metrics(tmp_path / "metrics.jsonl")
    assert losses(tmp_path) == {2: 2, 4: 4, 8: 80, 10: 100}
    assert [row["attempt"] for row in series] == [1, 1, 2, 2] and series[-1]["valid"] == 1.5
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 9  # nothing is erased


def test_a_step_back_within_an_attempt_supersedes_too(tmp_path):
    with open_run(tmp_path, record()) as run:
        run.record_start(0)
        for step, loss in [(1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0)]:
            run.write_metrics(step, {"loss": loss})
    assert [row["step"] for row in run.read_metrics()] == [1, 2]


@pytest.mark.parametrize("tail", ['{"step": 9, "lo', "\0\0\0\0", "{"])
def test_a_torn_last_row_is_left_out_and_repaired(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n' + tail)
    assert losses(tmp_path) == {1: 2.0}
    rows = atomic_io.JsonlWriter(path)
    rows.append({"step": 2, "loss": 1.0})
    rows.close()
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'


def test_repair_finds_the_start_of_a_long_row_and_keeps_a_whole_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    for torn in ("x" * 200_000, "\0" * 2**25):  # blocks that were never written read as zeros
        path.write_text('{"step": 1}\n' + torn)
        atomic_io.JsonlWriter(path).close()
        assert path.read_text() == '{"step": 1}\n'
    path.write_text('{"step": 1}')
    atomic_io.JsonlWriter(path).close()
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    "line", ['{"loss": 1}', "[1]", "{}x", '{"step": 1, "loss": NaN}', "\udcff"]
)
def test_a_damaged_row_is_named_not_skipped(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line}\n{{"step": 2}}\n', errors="surrogateescape")
    with pytest.raises(CheckpointError, match="metrics.jsonl"):
        read_metrics(path)


def test_too_large_files_are_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    with pytest.raises(CheckpointError, match="8 bytes; at most 4"):
        atomic_io.read_json(path, 4)
    path.write_text("[" * 10**5 + "]" * 10**5)
    with pytest.raises(CheckpointError, match="nested"):
        atomic_io.read_json(path)


def test_numbers_that_are_not_finite_stay_strict_json(tmp_path):
    with open_run(tmp_path, record()) as run:
        run.record_start(0)
        values = {"a": math.nan, "b": math.inf, "c": np.float32(-math.inf), "d": np.int64(3)}
        run.write_metrics(1, values)
        refuse = {"parse_constant": pytest.fail}
        line = json.loads((tmp_path / "metrics.jsonl").read_text(), **refuse)
        assert [line[k] for k in "abcd"] == ["NaN", "Infinity", "-Infinity", 3]
        (row,) = run.read_metrics()
        assert math.isnan(row["a"]) and row["b"] == math.inf and row["c"] == -math.inf


# Files.


@given(st.text(max_size=12))
def test_what_becomes_a_file_name_is_a_slug(name):  # covers S4
    try:
        run_paths.validate_name(name, "a task")
    except ConfigError:
        return
    root = Path("/nowhere/run")
    assert (root / name).resolve().parent == root and name.isascii() and name[0].isalnum()


@pytest.mark.parametrize(
    "name", ["..", "a/b", "", "-x", ".x", "a\0", "a" * 129, "con", "NUL.json", "é"]
)
def test_names_that_are_none_are_refused(tmp_path, name):  # covers S4
    with pytest.raises(ConfigError):
        RunFolder(tmp_path).write_eval(1, name, {})


def test_links_in_the_folder_are_not_followed(tmp_path):  # covers S5
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "eval").symlink_to(outside)
    for name in ("metrics.jsonl", "events.jsonl", "status.json", "run.json", "error.log"):
        (folder / name).symlink_to(outside / "victim")
    run = RunFolder(folder)
    for write in (
        lambda: run.write_eval(1, "task", {}),
        lambda: run.write_metrics(1, {}),
        lambda: run.log_event("x", {}),
        lambda: run.write_status("running"),
        lambda: run.write_error(ValueError()),
        lambda: open_run(folder, record()),
    ):
        with pytest.raises(DiskError, match="link"):
            write()
    with pytest.raises(DiskError, match="link"):
        run_paths.remove_tree(folder / "eval", folder)
    assert os.listdir(outside) == ["victim"]
    assert (outside / "victim").read_text() == "precious"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    atomic_io.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        atomic_io.write_json(path, {"a": object()})
    assert atomic_io.read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]


def test_a_path_that_cannot_be_written_is_a_disk_error(tmp_path):  # covers K13
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="file") as error:
        open_run(tmp_path / "file" / "run", record())
    assert error.value.code == 74 and "\n" not in str(error.value)


def test_eval_results_are_read_back(tmp_path):
    run = RunFolder(tmp_path)
    assert run.read_eval(10, "bits_per_byte") is None
    path = run.write_eval(10, "bits_per_byte", {"test": 2.1})
    assert path == tmp_path / "eval/10/bits_per_byte.json"
    assert run.read_eval(10, "bits_per_byte") == {"test": 2.1}


# What run.json says.


def described(**changes):
    sections = {
        "settings": {"data": {"source": "s3://key:hunter2@bucket/x"}, "seed": 1},
        "fingerprints": {"data": "d"},
        "cost": {"params": 3},
        "mesh": {"data": 1},
        "flags": {"resume": "auto"},
        "command": [
            "train.py",
            "--config.data.tokenizer=bpe",
            "--api-key=hunter2",
            "--token",
            "hunter2",
        ],
    }
    return provenance.make_run_record(**(sections | changes))


def test_secrets_are_not_recorded(monkeypatch):  # covers S10
    jax.devices()  # jax reads XLA_FLAGS when it starts, for all tests of the process
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    monkeypatch.setenv("JAX_CACHE_TOKEN", "hunter2")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://user:hunter2@bucket?sig=hunter2&a=1")
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=hf_{'a' * 34}")
    made = described()
    text = json.dumps(made)
    assert "hunter2" not in text and "hf_aaa" not in text and "HF_TOKEN" not in text
    assert made["environment"]["JAX_COMPILATION_CACHE_DIR"].startswith("gs://[redacted]@bucket")
    assert "--config.data.tokenizer=bpe" in made["command"]  # a tokenizer is no token
    assert made["settings"]["seed"] == 1


@pytest.mark.parametrize(
    "text",
    ["/data/hf_wikitext_shuffled/train.txt", "sk-learn-20newsgroups-x", "Bearer of bad news"],
)
def test_names_that_begin_like_credentials_stay(text):
    assert provenance.redact({"path": text}) == {"path": text}


@pytest.mark.parametrize(
    "secret",
    [
        *("hf_" + "aB3" * 11 + "x", "ghp_" + "aB3" * 12, "github_pat_11ABC_" + "aB3" * 12),
        *("sk-proj-" + "aB3-" * 9, "glpat-" + "aB3_" * 5, "AKIA" + "ABCD2345" * 2),
    ],
)
def test_credentials_are_known_by_their_form(secret):  # covers S10
    # Lengths as their makers have them: 34 after hf_, 36 after ghp_, 16 after AKIA.
    assert secret not in provenance.redact_text(f"see {secret} there")
    assert "eyJhbGciOi" not in provenance.redact_text("Bearer eyJhbGciOi1JIUzI1NiIs.x")


def test_run_json_tells_what_it_ran_on():
    made = described()
    assert {"jax", "flax", "orbax-checkpoint"} <= made["packages"].keys()
    assert made["devices"]["platform"] == "cpu" and made["devices"]["count"] >= 1
    assert (
        made["run_id"] != described()["run_id"]
        and strict_json.decode_json(strict_json.encode_json(made)) == made
    )


def test_the_command_of_a_notebooks_kernel_is_nobodys(monkeypatch):
    for words in (["train.py", "--config.seed=1"], ["eval/__main__.py", "--run=a"]):
        monkeypatch.setattr(sys, "argv", words)
        assert described(command=None)["command"] == words
    monkeypatch.setattr(sys, "argv", ["/x/lib/ipykernel_launcher.py", "-f", "/tmp/kernel.json"])
    assert described(command=None)["command"] == []


def test_code_version_tells_commit_and_changes(tmp_path):
    def git(*arguments):
        name = ("-c", "user.name=a", "-c", "user.email=a@b.example")
        subprocess.run(["git", "-C", tmp_path, *name, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "a.py").write_text("a = 1\n")
    git("add", "a.py")
    git("commit", "-m", "one")
    clean = provenance.code_version(tmp_path)
    assert len(clean["commit"]) == 40 and not clean["dirty"] and clean["diff_sha256"] == ""
    (tmp_path / "a.py").write_text("a = 2\n")
    edited = provenance.code_version(tmp_path)
    (tmp_path / "b.py").write_text("b = 1\n")
    extended = provenance.code_version(tmp_path)
    assert edited["dirty"] and len({edited["diff_sha256"], extended["diff_sha256"], ""}) == 3
    (tmp_path / "inside").mkdir()
    assert "commit" not in provenance.code_version(tmp_path / "inside")  # a repository around it
