"""Console, metrics and trackers: rows for people and machines, and none of it can stop a run."""

import io
import json
import logging
import math
import sys
import threading
import time
import types

import pytest

import formatting
from errors import ConfigError
from training.run import console, tracker_worker, trackers
from training.run.console import Console
from training.run.log import MetricsLogger
from training.run.open_folder import open_run
from training.run.settings import LogConfig

LOGGER = logging.getLogger("isoflop")
METRICS = {
    "loss": 2.34567,
    "bits_per_byte": 1.98767,
    "tokens_per_second": 12345.0,
    "mfu": 0.423,
    "data_wait": 0.004,
    "grad_norm": 0.5,
}


@pytest.fixture
def run(tmp_path):
    record = {"format": 2, "run_id": "abc", "created": "", "settings": {"a": 1}, "fingerprints": {}}
    with open_run(tmp_path / "run", record) as run:
        run.record_start(0)
        yield run


@pytest.fixture
def fake(monkeypatch):
    """A tracker of one's own under the name "wandb"."""

    def install(write=lambda *_: None, close=lambda: None, start=lambda target: None):
        def make(target):
            start(target)
            return types.SimpleNamespace(write=write, close=close)

        monkeypatch.setitem(trackers.TRACKERS, "wandb", (make, "json", "wandb"))
        return LogConfig(trackers=("wandb",), console="off")

    return install


def warnings(run):
    return [event["message"] for event in run.read_events() if event["event"] == "tracker"]


# Rows.


def test_every_row_reaches_metrics_jsonl(run):
    with MetricsLogger(LogConfig(console="off"), run, total_steps=20) as log:
        log.write(10, METRICS | {"data_hash": "ab12"})
        log.write(20, {"loss": math.nan})
    rows = run.read_metrics()
    assert rows[0]["loss"] == 2.34567 and rows[0]["data_hash"] == "ab12"
    assert rows[0]["step"] == 10 and rows[0]["attempt"] == 1 and math.isnan(rows[1]["loss"])


def test_plain_rows_are_one_line_each(capsys):
    shown = Console("auto", total_steps=100)  # no terminal here
    shown.open()
    shown.print_row(10, METRICS)
    shown.print_row(20, METRICS)
    shown.print_row(20, {"valid/bits_per_byte": 2.125})
    shown.close()
    first, second, scores = capsys.readouterr().out.splitlines()
    for text in (
        "step 10/100",
        "loss 2.3457",
        "bpb 1.9877",
        "tok/s 12.3k",
        "MFU 42.3%",
        "wait 0.4%",
    ):
        assert text in first
    assert "grad_norm" not in first and "ETA" not in first and "ETA 0:00" in second
    assert "valid/bits_per_byte 2.125" in scores


def test_time_left_does_not_count_the_compilation(monkeypatch):
    now = iter([1000.0, 1030.0, 1060.0])
    clock = types.SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(console, "time", clock)
    out = io.StringIO()
    shown = Console("plain", total_steps=3620, file=out)
    shown.print_row(10, {"loss": 1.0})
    shown.print_row(20, {"loss": 1.0})
    assert out.getvalue().splitlines()[1].endswith("ETA 3:00:00")  # 3 s a step, 3600 to go


def test_time_left_counts_the_evaluation_at_the_end(monkeypatch):
    now = iter([1000.0, 1030.0, 1060.0, 1090.0, 1095.0])
    clock = types.SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(console, "time", clock)
    out = io.StringIO()
    shown = Console("plain", total_steps=30, file=out)
    shown.expect_evaluation(4.0)
    for step in (10, 20, 30):
        shown.print_row(step, {"loss": 1.0})
    shown.print_row(30, {"test/bits_per_byte": 2.0})
    lines = [line.partition("ETA ")[2] for line in out.getvalue().splitlines()]
    assert lines == ["", "0:42", "0:12", "0:00"]  # 3 s a step


@pytest.mark.parametrize(
    ("x", "text"),
    [
        *((0.5, "0.5"), (999.0, "999"), (12345.0, "12.3k"), (2.5e6, "2.5M"), (3e13, "30T")),
        *((9.99e20, "999E"), (3e22, "3.00e22"), (math.inf, "inf")),
    ],
)
def test_large_numbers_are_short(x, text):
    assert formatting.format_si(x) == text
    assert formatting.format_si(3.37e13, "FLOPs") == "33.7 TFLOPs"


def test_off_is_silent_and_rich_shows_a_live_line(capsys):
    out = io.StringIO()
    shown = Console("off", total_steps=10, file=out)
    shown.open()
    shown.print_row(1, METRICS)
    shown.close()
    assert out.getvalue() == ""
    shown = Console("rich", total_steps=10, file=out)
    shown.open()
    shown.print_row(5, METRICS)
    assert "5/10" in shown._status_line().plain and "bpb 1.9877" in shown._status_line().plain
    shown.close()
    assert "step 5/10" in out.getvalue()


def test_names_cannot_steer_the_terminal():
    for mode in ("plain", "rich"):
        out = io.StringIO()
        shown = Console(mode, total_steps=1, file=out)
        shown.print_message("[red]x[/red] \x1b[2J \x07")
        assert "[red]x[/red]" in out.getvalue() and "\x1b[2J" not in out.getvalue()


# Messages.


def test_events_are_shown_once_however_often_a_console_is_opened(run, capsys):  # P14 in part
    before = list(LOGGER.handlers), LOGGER.propagate
    left = [Console("plain", total_steps=1) for _ in range(3)]
    for shown in left:  # cells that were interrupted before they could close theirs
        shown.open()
    run.log_event("checkpoint_fallback", {"message": "checkpoint 2 is damaged"})
    run.log_event("start", {"step": 3})
    assert capsys.readouterr().out.splitlines() == [
        "warning: checkpoint 2 is damaged",
        "start step=3",
    ]
    for shown in left:
        shown.close()
    assert (list(LOGGER.handlers), LOGGER.propagate) == before


# Trackers.


def test_a_tracker_gets_numbers(run, fake):
    rows, seen = [], []
    cfg = fake(
        write=lambda *row: rows.append(row), start=seen.append, close=lambda: rows.append("end")
    )
    with MetricsLogger(cfg, run, total_steps=20) as log:
        log.write(10, {"loss": 1.5, "data_hash": "ab", "flag": True})
    assert rows == [(10, {"loss": 1.5}), "end"]
    assert seen[0].run_id == "abc" and seen[0].settings == {"a": 1}


def failing(*_):
    raise ConnectionError("no network, https://me:hunter2@host")


@pytest.mark.parametrize("where", ["start", "write", "close"])
def test_a_tracker_that_raises_is_told_once_and_left_out(run, fake, where):  # covers P12
    with MetricsLogger(fake(**{where: failing}), run, total_steps=20) as log:
        for step in range(5):
            log.write(step, {"loss": 1.0})
    (message,) = warnings(run)
    assert (
        "wandb failed and is excluded" in message
        and "no network" in message
        and "hunter2" not in message
    )
    assert len(run.read_metrics()) == 5


def test_a_tracker_that_hangs_costs_no_time(run, fake, monkeypatch):  # covers P12
    monkeypatch.setattr(tracker_worker, "CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr(tracker_worker, "QUEUE_SIZE", 3)
    gate = threading.Event()
    begun = time.perf_counter()
    with MetricsLogger(fake(write=lambda *_: gate.wait(20)), run, total_steps=20) as log:
        for step in range(10):
            log.write(step, {"loss": 1.0})
    assert time.perf_counter() - begun < 5 and len(run.read_metrics()) == 10
    assert "too slow" in warnings(run)[0] and "still busy" in warnings(run)[1]
    gate.set()


def test_a_tracker_that_is_not_installed_is_named_before_training(run, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", (None, "no_such_package", "wandb"))
    with pytest.raises(ConfigError, match=r"'wandb', which is not installed: .*\.\[wandb\]"):
        MetricsLogger(LogConfig(trackers=("wandb",)), run, total_steps=1)


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        LogConfig(trackers=("wandbb",))
    assert set(trackers.TRACKERS) == {"tensorboard", "wandb", "trackio"}


class Recorder:
    """Stands in for the three packages, whose calls it writes down."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments, **named):
            self.calls.append((name, arguments, named))
            return self

        return call


@pytest.mark.parametrize(
    ("name", "package", "expected"),
    [
        ("tensorboard", "tensorboardX", ["SummaryWriter", "add_scalar", "flush", "close"]),
        ("wandb", "wandb", ["init", "log", "finish"]),
        ("trackio", "trackio", ["init", "log", "finish"]),
    ],
)
def test_adapters_call_what_the_packages_offer(run, monkeypatch, name, package, expected):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, package, recorder)
    tracker = trackers.TRACKERS[name][0](trackers.RunInfo(run.path, "abc", {"a": 1})).tracker
    tracker.write(7, {"loss": 1.5})
    tracker.close()
    assert [call[0] for call in recorder.calls] == expected
    assert "7" in str(recorder.calls[1]) and json.dumps(1.5) in str(recorder.calls[1])
