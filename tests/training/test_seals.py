"""Seals: a flip or a cut in any file of a run is found by who reads it, and a run repairs it."""

import json

import board_runs
import jax.numpy as jnp
import pytest

from errors import CheckpointError, ConfigError, DataError
from protocol.records.run_record import read_run
from settings.run_json import add_hash
from training.checkpoint import restore
from training.checkpoint.manager import CheckpointManager
from training.checkpoint.settings import CheckpointConfig
from training.distributed.fault_injection import FaultInjector
from training.run import seal
from training.run.folder import RunFolder
from training.run.open_folder import open_run
from training.run.run_paths import validate_run_path

RECORD = {
    **{"format": 2, "run_id": "abc", "created": "", "settings": {"a": 1.5}, "fingerprints": {}},
    "flags": {},
}


def finished_run(path):
    """A finished run with two rows and a result."""
    with open_run(path, RECORD) as run:
        run.record_start(0)
        run.write_metrics(1, {"loss": 2.25})
        run.write_metrics(2, {"loss": 1.25})
        run.write_eval(2, "bits_per_byte", {"version": 1, "scores": [{"name": "a", "value": 1.5}]})
        run.record_finish(2)
    return path


def kinds(run):
    return [event["event"] for event in run.read_events()]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


FLIPS = [
    ("run.json", '"a": 1.5', '"a": 1.7'),
    ("run.json", '"sealed"', '"sealee"'),
    ("run.json", '"sha256"', '"sha257"'),
    ("status.json", '"step": 2', '"step": 3'),
    ("status.json", '"sha256": "', '"sha25v": "'),
    ("metrics.jsonl", "1.25", "1.35"),
    ("metrics.jsonl", '"loss"', '"lost"'),
    ("events.jsonl", '"start"', '"stasp"'),
    ("eval/2/bits_per_byte.json", '"value": 1.5', '"value": 1.7'),
    ("eval/2/bits_per_byte.json", '"sha256"', '"sha257"'),
    ("eval/2/bits_per_byte.json", '"version": 1', '"version": 0'),
]


@pytest.mark.parametrize(("name", "old", "new"), FLIPS)
def test_a_flip_in_a_file_of_a_finished_run_is_found_by_the_next_start(tmp_path, name, old, new):
    edit(finished_run(tmp_path) / name, old, new)
    if name == "run.json":
        with pytest.raises(CheckpointError, match="run.json is not as it was written"):
            open_run(tmp_path, RECORD)
        return
    with open_run(tmp_path, RECORD) as run:
        found = run.find_damage() if run.finished_step == 2 else kinds(run)
        assert found and (run.finished_step == 2 or "file_damaged" in found)
        run.record_start(2)  # as the repair does
        run.record_finish(2)
        result = run.read_eval(2, "bits_per_byte")
        assert (result is None) == name.startswith("eval")


def test_an_intact_run_has_no_damage(tmp_path):
    with open_run(finished_run(tmp_path), RECORD) as run:
        assert run.finished_step == 2 and run.find_damage() == []
        assert run.read_eval(2, "bits_per_byte")["scores"] == [{"name": "a", "value": 1.5}]


@pytest.mark.parametrize("cut", ["last row", "all rows", "one more"])
def test_a_cut_or_longer_metrics_file_of_a_finished_run_is_found(tmp_path, cut):
    path = finished_run(tmp_path) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join({"last row": lines[:1], "all rows": []}.get(cut, [*lines, lines[0]])))
    with open_run(tmp_path, RECORD) as run:
        (problem,) = run.find_damage()
    assert problem.startswith("metrics.jsonl has")


@pytest.mark.parametrize(
    ("damage", "rows"),
    [
        (lambda lines: lines[1:], [2, 3]),  # a row is removed
        (lambda lines: [lines[0].replace("2.0", "7.0"), *lines[1:]], [1, 2, 3]),
        (lambda lines: ["x" + lines[0], *lines[1:]], [2, 3]),
        (lambda lines: [*lines[:2], "{" + lines[2]], [1, 2]),  # after the checkpoint
    ],
)
def test_damaged_metrics_are_an_event_when_a_run_resumes(tmp_path, damage, rows):
    with open_run(tmp_path, RECORD) as run:
        run.record_start(0)
        for step in (1, 2, 3):
            metrics_seal = run.metrics_seal() if step == 3 else None
            run.write_metrics(step, {"loss": 2.0 * step})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(damage(path.read_text().splitlines(keepends=True))))
    before = path.read_bytes()
    with open_run(tmp_path, RECORD) as run:
        run.record_start(4, metrics_seal)
        (event,) = [e for e in run.read_events() if e["event"] == "file_damaged"]
        assert event["message"].startswith(("metrics.jsonl", str(tmp_path)))
        assert [row["step"] for row in run.read_metrics()] == rows
        assert (tmp_path / "metrics.damaged-2.jsonl").read_bytes() == before
    with open_run(tmp_path, RECORD) as run:  # the damage is told once
        run.record_start(4, run.metrics_seal())
        assert kinds(run).count("file_damaged") == 1


def test_intact_metrics_stay_as_they_are_when_a_run_resumes(tmp_path):
    with open_run(tmp_path, RECORD) as run:
        run.record_start(0)
        run.write_metrics(1, {"loss": 2.0})
        metrics_seal = run.metrics_seal()
        run.write_metrics(2, {"loss": 1.0})
    with open_run(tmp_path, RECORD) as run:
        run.record_start(1, metrics_seal)
        assert "file_damaged" not in kinds(run)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


# The board.


def sealed_board_run(path):
    """A synthetic run folder whose files have the hashes that training writes."""
    board_runs.run(path)
    (path / "checkpoints/100/MANIFEST.json").unlink()
    seals = {name: seal.seal_file(path / name) for name in ("metrics.jsonl", "events.jsonl")}
    for name, more in {
        "run.json": {"sealed": True},
        "status.json": {"files": seals},
        "eval/100/bits_per_byte.json": {},
    }.items():
        content = json.loads((path / name).read_text()) | more
        (path / name).write_text(json.dumps(add_hash(content)))
    return path


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("run.json", '"seed": 0', '"seed": 4'),
        ("run.json", '"sealed"', '"sealee"'),
        ("status.json", '"finished"', '"finishee"'),
        ("metrics.jsonl", '"loss": ', '"loss": 1'),
        ("events.jsonl", '"start"', '"stasp"'),
        ("eval/100/bits_per_byte.json", '"value": 2.0', '"value": 2.2'),
        ("eval/100/bits_per_byte.json", '"sha256"', '"sha257"'),
    ],
)
def test_the_board_leaves_a_damaged_run_out_and_names_the_file(tmp_path, name, old, new):
    path = sealed_board_run(tmp_path)
    assert read_run(path, "a").value == 2.0
    edit(path / name, old, new)
    with pytest.raises(DataError, match=f"{name}.*written.*restore it from a copy"):
        read_run(path, "a")


def test_the_board_finds_a_shortened_metrics_file(tmp_path):
    path = sealed_board_run(tmp_path) / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(DataError, match=r"metrics.jsonl has \d+ bytes, \d+ were written"):
        read_run(tmp_path, "a")


# Checkpoints.


def saved(path, *steps):
    """A run with checkpoints of a small state at `steps`, which has finished at the last."""
    with (
        open_run(path, RECORD) as run,
        CheckpointManager(run, CheckpointConfig(keep=9), FaultInjector("")) as checkpoints,
    ):
        run.record_start(0)
        for step in steps:
            checkpoints.save(step, {"trainable": {"w": jnp.full((3,), step)}}, {}, wait=True)
        run.record_finish(steps[-1])
    return path / "checkpoints"


def test_who_only_reads_a_run_is_warned_of_a_newer_checkpoint_that_is_damaged(tmp_path, caplog):
    root = saved(tmp_path, 4, 8)
    assert restore.newest_step(root) == 8 and not caplog.messages
    file = max((root / "8").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with caplog.at_level("WARNING", "isoflop"):
        assert restore.newest_step(root) == 4
        (message,) = caplog.messages
        assert message.startswith("checkpoint 8: ") and "using step 4" in message
        caplog.clear()
        (root / "8").rename(tmp_path / "away")
        assert restore.newest_step(root) == 4
        assert "checkpoint 8: it is missing" in caplog.messages[0]


def test_a_checkpoint_whose_index_lists_no_arrays_is_not_sealed(tmp_path):
    root = saved(tmp_path, 4)
    leaves = restore.read_manifest(root, 4, check_hashes=True)["leaves"]
    assert restore.find_unreadable_leaf(root / "4", leaves) == ""
    other = {"trainable.w": {"shape": [4], "dtype": "int32"}}
    assert "is {'shape': [3]" in restore.find_unreadable_leaf(root / "4", other)
    missing = leaves | {"trainable.x": leaves["trainable.w"]}
    assert "trainable.x cannot be opened" in restore.find_unreadable_leaf(root / "4", missing)


@pytest.mark.parametrize("name", ["a[b]", "a*b", "a?", "a\\b", "a\nb", "a\udcff"])
def test_a_path_under_which_no_checkpoint_can_be_written_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="--workdir: the path .* another path|use a path") as e:
        open_run(tmp_path / name, RECORD)
    assert "\n" not in str(e.value) and list(tmp_path.iterdir()) == []
    str(e.value).encode()
    assert validate_run_path(tmp_path / "a b ü%20#") == tmp_path / "a b ü%20#"


def test_a_run_whose_path_is_no_utf8_can_say_why_it_failed(tmp_path):
    run = RunFolder(tmp_path)
    run.write_error(ValueError("no file \udcff"))
    assert "no file \\udcff" in (tmp_path / "error.log").read_text()
