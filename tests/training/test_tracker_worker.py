"""Trackers beside training: they delay nothing, and hold each row once after a stop."""

import json
import sys
import threading
import types

import pytest

from training.run import tracker_worker, trackers
from training.run.log import MetricsLogger
from training.run.open_folder import open_run
from training.run.settings import LogConfig

RECORD = {"format": 2, "run_id": "abc", "created": "", "settings": {}, "fingerprints": {}}


class FakeWandb(types.ModuleType):
    """A module with wandb's interface that keeps the histories of runs, as its server does."""

    def __init__(self, *, can_cut=True):
        super().__init__("wandb")
        self.runs, self.can_cut = {}, can_cut

    def init(self, *, id, resume=None, resume_from=None, **_):
        if resume_from:
            if not self.can_cut:
                raise RuntimeError("rewinding is not available")
            last = int(resume_from.rpartition("=")[2])
            self.runs[id] = [row for row in self.runs[id] if row[0] <= last]
        rows = self.runs.setdefault(id, [])
        return types.SimpleNamespace(
            log=lambda metrics, step: rows.append((step, metrics)), finish=lambda: None
        )

    def finish(self):
        pass


class FakeTrackio(types.ModuleType):
    """A module with trackio's interface: runs by name, which can be deleted as a whole."""

    def __init__(self):
        super().__init__("trackio")
        self.runs = {}
        delete = lambda name: self.runs.pop(name) is not None  # noqa: E731
        self.Api = lambda: types.SimpleNamespace(
            runs=lambda project: [
                types.SimpleNamespace(name=n, delete=lambda n=n: delete(n)) for n in self.runs
            ]
        )

    def init(self, *, name, resume, **_):
        rows = self.runs.setdefault(name, [])
        return types.SimpleNamespace(
            log=lambda metrics, step: rows.append((step, metrics)), finish=lambda: None
        )


class FakeTensorBoard(types.ModuleType):
    """A module with tensorboardX's writer, which hides earlier rows as TensorBoard does."""

    def __init__(self):
        super().__init__("tensorboardX")
        self.rows, self.suffixes = [], set()

    def SummaryWriter(self, folder, purge_step, filename_suffix):
        assert filename_suffix not in self.suffixes  # two files may begin in the same second
        self.suffixes.add(filename_suffix)
        if purge_step is not None:
            self.rows = [row for row in self.rows if row[0] < purge_step]
        return types.SimpleNamespace(
            add_scalar=lambda name, value, step: self.rows.append((step, {name: value})),
            flush=lambda: None,
            close=lambda: None,
        )


def histories(module):
    """The rows of the newest run that a fake has."""
    return module.rows if isinstance(module, FakeTensorBoard) else list(module.runs.values())[-1]


FAKES = {
    "tensorboard": FakeTensorBoard,
    "wandb": FakeWandb,
    "wandb that cannot cut": lambda: FakeWandb(can_cut=False),
    "trackio": FakeTrackio,
}


def attempt(path, name, steps, start=0, *, loss=float, killed=False, rewind=()):
    """Logs rows as an attempt at a run does; `killed`: trackers.json stays as a kill leaves it."""
    with open_run(path, RECORD) as run:
        run.record_start(start)
        with MetricsLogger(LogConfig(trackers=(name,), console="off"), run, total_steps=9) as log:
            for step in steps:
                log.write(step, {"loss": loss(step)})
            for to, again in rewind:
                run.record_rollback(to, {})
                log.rewind(to)
                for step in again:
                    log.write(step, {"loss": loss(step) + 100})
        state = json.loads((path / "trackers.json").read_text())
        if killed:
            starts, _, sent = state[name]
            state = {name: [starts, sent - 1, sent]}
            (path / "trackers.json").write_text(json.dumps(state))
        return run.read_metrics()


@pytest.mark.parametrize("fake", FAKES)
def test_a_tracker_holds_each_row_once_after_a_kill(tmp_path, monkeypatch, fake):
    name, module = fake.split()[0], FAKES[fake]()
    monkeypatch.setitem(sys.modules, trackers.TRACKERS[name][1], module)
    monkeypatch.setattr(tracker_worker, "check_installed", lambda names: None)
    attempt(tmp_path, name, range(1, 7), killed=True)  # rows 5 and 6 are after the checkpoint
    if fake == "tensorboard":
        module.rows.pop()  # the last row was not on the disk
    rows = attempt(tmp_path, name, range(5, 9), start=4)
    assert [(row["step"], row["loss"]) for row in rows] == [(n, float(n)) for n in range(1, 9)]
    assert [(step, m["loss"]) for step, m in histories(module)] == [
        (row["step"], row["loss"]) for row in rows
    ]


@pytest.mark.parametrize("fake", FAKES)
def test_a_tracker_shows_the_steps_after_a_rollback_once(tmp_path, monkeypatch, fake):
    name, module = fake.split()[0], FAKES[fake]()
    monkeypatch.setitem(sys.modules, trackers.TRACKERS[name][1], module)
    monkeypatch.setattr(tracker_worker, "check_installed", lambda names: None)
    rows = attempt(tmp_path, name, range(1, 7), rewind=[(4, range(5, 8)), (2, range(3, 9))])
    assert [row["loss"] for row in rows] == [1, 2, *range(103, 109)]
    assert [(step, m["loss"]) for step, m in histories(module)] == [
        (row["step"], row["loss"]) for row in rows
    ]


def test_a_tracker_that_is_switched_on_later_gets_all_rows(tmp_path, monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(tracker_worker, "check_installed", lambda names: None)
    with open_run(tmp_path, RECORD) as run:
        run.record_start(0)
        run.write_metrics(1, {"loss": 1.0, "data_hash": "ab"})
        run.write_metrics(2, {"loss": 2.0})
    attempt(tmp_path, "wandb", [3], start=2)
    assert module.runs["abc"] == [(n, {"loss": float(n)}) for n in (1, 2, 3)]


def test_the_final_evaluation_reaches_a_tracker_after_a_resume_at_the_last_step(
    tmp_path, monkeypatch
):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(tracker_worker, "check_installed", lambda names: None)
    attempt(tmp_path, "wandb", [1, 2])
    with open_run(tmp_path, RECORD) as run:
        run.record_start(2)
        with MetricsLogger(LogConfig(trackers=("wandb",), console="off"), run, total_steps=2) as w:
            w.write(2, {"test/loss": 5.0})
        (last,) = [row for row in run.read_metrics() if row["step"] == 2]
    assert last["loss"] == 2.0 and last["test/loss"] == 5.0  # rows of two attempts merge
    assert module.runs["abc"][-1] == (2, {"test/loss": 5.0}) and len(module.runs["abc"]) == 3


def test_a_tracker_that_waits_at_its_start_delays_neither_steps_nor_others(tmp_path, monkeypatch):
    gate, rows = threading.Event(), []
    monkeypatch.setattr(tracker_worker, "START_TIMEOUT", 0.0)
    monkeypatch.setattr(tracker_worker, "CLOSE_TIMEOUT", 0.5)
    monkeypatch.setattr(tracker_worker, "check_installed", lambda names: None)
    quick = types.SimpleNamespace(write=lambda *row: rows.append(row), close=lambda: None)
    table = {"wandb": (lambda info: gate.wait(20), "", ""), "trackio": (lambda info: quick, "", "")}
    monkeypatch.setattr(tracker_worker, "TRACKERS", table)
    with open_run(tmp_path, RECORD) as run:
        run.record_start(0)
        cfg = LogConfig(trackers=("wandb", "trackio"), console="off")
        with MetricsLogger(cfg, run, total_steps=2) as log:
            log.write(1, {"loss": 1.0})
            log.write(2, {"loss": 2.0})
        told = [event["message"] for event in run.read_events() if event["event"] == "tracker"]
        assert rows == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]
        slow = [message for message in told if "wandb" in message]  # the other may be late as well
        assert "wandb has not started" in slow[0] and "wandb: still busy" in slow[1]
    gate.set()


def test_rows_that_did_not_fit_in_the_queue_are_sent_later(tmp_path, monkeypatch):
    gate, rows = threading.Event(), []
    monkeypatch.setattr(tracker_worker, "QUEUE_SIZE", 3)
    monkeypatch.setattr(tracker_worker, "check_installed", lambda names: None)

    def write(step, metrics):
        gate.wait(20)
        rows.append(step)

    slow = types.SimpleNamespace(write=write, close=lambda: rows.append("end"))
    monkeypatch.setattr(tracker_worker, "TRACKERS", {"wandb": (lambda info: slow, "", "")})
    with open_run(tmp_path, RECORD) as run:
        run.record_start(0)
        with MetricsLogger(LogConfig(trackers=("wandb",), console="off"), run, total_steps=9) as w:
            for step in range(1, 10):
                w.write(step, {"loss": 1.0})
            gate.set()
    assert rows == [*range(1, 10), "end"]
