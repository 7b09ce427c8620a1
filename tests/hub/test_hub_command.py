"""Tests `python -m hub` on folders that cannot be written or have nothing to compare."""

import hub_goldens as goldens
import numpy as np
import pytest

import hub
from errors import CheckpointError, DiskError
from hub import __main__ as command
from hub import safetensors_io
from training.run.run_paths import check_writable, staged_folder


def test_a_folder_is_staged_whole_or_not_at_all(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("kept")
    with staged_folder(tmp_path / "mine") as stage:
        (stage / "a").write_text("x")
        assert not (tmp_path / "mine" / "a").exists()
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["a", "note"]

    def write_until_the_disk_is_full(folder):
        with staged_folder(folder) as stage:
            (stage / "0.part").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="new: No space left on device; free space"):
        write_until_the_disk_is_full(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "x"):
        for write in (write_until_the_disk_is_full, check_writable):
            with pytest.raises(DiskError, match=f"{tmp_path}/file.*check permissions or use anot"):
                write(path)


def test_the_stage_of_a_killed_process_is_deleted_and_that_of_a_live_one_is_not(tmp_path):
    dead = tmp_path / ".stage.dead"
    dead.mkdir()
    (dead / "half").write_text("x")
    with staged_folder(tmp_path) as first:
        assert not dead.exists()
        (first / "a").write_text("1")
        with staged_folder(tmp_path) as second:
            (second / "b").write_text("2")
        assert (first / "a").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_an_export_that_fails_leaves_no_part_of_it(tmp_path, monkeypatch):
    model, config, _ = hub.load(goldens.FOLDER / "llama3")
    write_file = safetensors_io._write_file

    def fail_at_the_second(path, tensors):
        if path.name == "1.part":
            raise OSError(28, "No space left on device")
        return write_file(path, tensors)

    monkeypatch.setattr(safetensors_io, "_write_file", fail_at_the_second)
    with pytest.raises(DiskError, match=f"{tmp_path}/x: No space left"):
        hub.save(model, config, tmp_path / "x", max_shard_bytes=1)
    assert list((tmp_path / "x").iterdir()) == []
    monkeypatch.undo()
    hub.save(model, config, tmp_path / "x")  # so that the same command can be run again
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"config.json", "model.safetensors"}


def test_check_says_what_it_cannot_compare(tmp_path, capsys, monkeypatch):
    folder = goldens.copy("llama3", tmp_path / "x", exclude=("expected.safetensors",))
    with pytest.raises(CheckpointError, match="nothing to compare with: no outputs in outputs_f64"):
        command.check(folder)
    outputs = {"logits": np.zeros((1, 2), np.float32), "greedy_ids": np.zeros(3, np.int32)}
    safetensors_io._write_file(folder / "outputs.safetensors", outputs)
    monkeypatch.setattr(hub, "forward", lambda *_: {"logits": np.zeros((3, 40, 128), np.float32)})
    with pytest.raises(CheckpointError, match="1 of 1 outputs differ from the reference"):
        command.check(folder)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("shape (3, 40, 128), the reference has (1, 2)  DIFFERENT")
    assert second.endswith("not computed here")
    monkeypatch.setattr(hub, "forward", lambda *_: {"pooler_output": np.zeros((3, 4))})
    with pytest.raises(CheckpointError, match="nothing to compare with: none of its outputs"):
        command.check(folder)
    safetensors_io._write_file(folder / "inputs.safetensors", outputs)
    with pytest.raises(CheckpointError, match="has no input_ids"):
        command.check(folder)
