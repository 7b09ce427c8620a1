"""Tiny versions of the shipped studies of images, preferences and fine-tuning, up to their rows."""

import dataclasses
import json

import pytest

import compare
from configs.post_training import chat, preference

pytestmark = pytest.mark.slow
TINY = {
    "model.width": 32,
    "model.depth": 2,
    "train.batch_size": 8,
    "log.every": 1,
    "log.console": "off",
    "eval.batch_size": 32,
    "train.compile_cache": "",
}


def board_of(name, tmp_path, monkeypatch, settings, **changes):
    """Runs a shipped study with one seed and tiny settings; returns the rows of its board."""
    load = compare.study.load_study
    monkeypatch.setattr(
        compare.study,
        "load_study",
        lambda path: dataclasses.replace(load(path), seeds=(0,), results_dir="", **changes),
    )
    config = compare.__file__.replace("compare.py", f"configs/compare/{name}.py")
    named = TINY | {"data.cache": tmp_path / "cache"} | settings
    compare.run(
        [
            f"--config={config}",
            f"--workdir={tmp_path / 'runs'}",
            *(f"--config.{key}={value}" for key, value in named.items()),
        ]
    )
    board = json.loads((tmp_path / "runs/board/leaderboard.json").read_text())
    (comparable_set,) = board["comparable_sets"]
    (group,) = comparable_set["groups"]
    assert not board["unreadable"]
    rows = {row["config"]["model"]: row for row in group["rows"]}
    for name, row in rows.items():
        texts = [t for t in group["summary"]["costs"] if t.startswith(f"The study of {name} cost ")]
        row["study_cost"] = "".join(texts)
    return rows, comparable_set["metric"], board


def test_images_and_texts(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    settings = {"train.steps": 40, "data.images.count": 200, "model.vision.width": 32}
    settings |= {"model.vision.depth": 1, "model.mamba2.head_dim": 8}
    rows, metric, _ = board_of("image_text", tmp_path, monkeypatch, settings)
    assert rows.keys() == {"attention", "mamba2"} and metric == "test/recall@1_of_100"
    for row in rows.values():
        names = {"recall@1_of_100,none", "recall@1_of_100_reverse,none"}
        assert names <= row["results"]["test"].keys()
        assert 0 <= row["mean"] <= 1 and row["n"] == 1
        assert "accuracy,none" in row["results"]["first_word"]


def test_captions_with_and_without_images(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    settings = {"train.steps": 60, "data.images.count": 200, "model.vision.depth": 1}
    rows, metric, _ = board_of("image_caption", tmp_path, monkeypatch, settings)
    assert rows.keys() == {"picture", "alone"} and metric == "test/caption_bits_per_byte"
    assert "image_gain,none" in rows["picture"]["results"]["test"]
    assert "image_gain,none" not in rows["alone"]["results"]["test"]


def test_preferences_after_their_stages(tmp_path, monkeypatch):
    """Attention, Mamba-2 and a hybrid pass all three stages."""
    monkeypatch.setattr(chat, "N_CHATS", 150)
    monkeypatch.setattr(preference, "N_PREFERENCES", 200)
    chat.write_example_chats(tmp_path / "chats.jsonl")
    preference.write_example_preferences(tmp_path / "preferences.jsonl")
    monkeypatch.chdir(tmp_path)
    few = {"train.steps": 3}
    load = compare.study.load_study
    config = compare.__file__.replace("compare.py", "configs/compare/preference.py")
    stages = {n: dict(changes) | few for n, changes in load(config).earlier_stages.items()}
    settings = {"train.steps": 4, "train.seq_len": 128, "data.max_shared": 1}
    rows, metric, board = board_of(
        "preference", tmp_path, monkeypatch, settings, earlier_stages=stages
    )
    assert rows.keys() == {"attention", "mamba2", "hybrid"}
    assert metric == "test/preference_accuracy" and board["stage_runs"] == 6
    for row in rows.values():
        assert 0 <= row["mean"] <= 1
        assert {"preference_margin,none", "preference_accuracy_low,none"} <= row["results"][
            "test"
        ].keys()
        for part in ("1 base run ", "1 chat run ", "1 reported run "):
            assert part in row["study_cost"]


def test_fine_tuning_is_a_cost_of_its_row(tmp_path, monkeypatch):
    settings = {"train.steps": 20, "train.seq_len": 64, "eval.limit": 2048}
    settings |= {"optimizer.warmup": 0.1, "data.tokenizer": "bytes"}
    settings |= {"eval.finetune.max_examples": 64, "eval.finetune.max_tokens": 32}
    settings |= {"eval.finetune.learning_rates": 1e-3, "eval.finetune.epochs": 1}
    settings |= {"model.mamba2.head_dim": 16, "model.attention.heads": 2}
    rows, metric, _ = board_of("finetune", tmp_path, monkeypatch, settings)
    assert rows.keys() == {"dense", "mamba2", "hybrid"}
    assert metric == "finetune_genre/accuracy"
    for row in rows.values():
        spent = row["results"]["finetune_genre"]["flops,none"]
        assert row["costs"]["study_flops"] > row["costs"]["training_flops"] + spent
        assert "training by evaluation tasks " in row["study_cost"]
