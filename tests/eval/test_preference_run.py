"""Tests training on preferences from the command line: stages, resuming, costs and scores."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
from tiny_runs import run, saved_leaves

import train
from eval import harness
from eval.load_run import load_run
from eval.text_generation import text_model
from objectives import CausalLM
from training.run.folder import RunFolder

STEPS, BATCH, LENGTH = 6, 16, 16
NOUNS = ["cat", "dog", "fox", "cow", "owl", "hen", "ant", "bee", "pig", "rat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes questions with a reply in small letters, which is chosen, and one in capitals."""
    folder = tmp_path_factory.mktemp("preferences")
    rng, lines = np.random.default_rng(0), []
    for number in range(300):
        noun, reply = rng.choice(NOUNS), " ".join(rng.choice(NOUNS, 2))
        record = {"prompt": f"{number} {noun}? ", "chosen": reply, "rejected": reply.upper()}
        lines.append(json.dumps(record))
    (folder / "lines.jsonl").write_text("\n".join(lines))
    return folder


def flags(folder, workdir, *more: str) -> list[str]:
    """Returns the flags of a run in two microbatches."""
    settings = {
        "objective": "preference",
        "preference.beta": 0.5,
        "train.batch_size": BATCH,
        "train.grad_accum_steps": 2,
        "data.source": "jsonl",
        "data.path": folder / "lines.jsonl",
        "data.valid_share": 0.1,
        "data.test_share": 0.1,
        "data.cache": folder / "cache",
        "model.layers": "mamba2+none",
        "model.mamba2.head_dim": 16,
    }
    return tiny_runs.flags(settings, workdir, *more)


@pytest.fixture(scope="module")
def finished(folder):
    """Trains a run that begins as another one ends; both share the compiled step."""
    assert run(*flags(folder, folder / "base", "--config.seed=1")) == 0
    assert run(*flags(folder, folder / "finished", f"--init_from={folder / 'base'}")) == 0
    return folder / "finished"


def scores(workdir, task="preference") -> dict:
    record = json.loads((workdir / "eval" / str(STEPS) / f"{task}.json").read_text())
    return {score["name"]: score["value"] for score in record["scores"]}


def test_the_first_step_is_that_of_the_reference(finished, folder):
    """The run begins as its reference, so that every reward is 0; later ones are not."""
    rows = RunFolder(finished).read_metrics()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["chosen_reward"] == pytest.approx(0, abs=1e-4)
    assert rows[0]["likelihood_accuracy"] == rows[0]["reference_accuracy"]
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["margin"] > 0
    assert rows[-1]["tokens"] == STEPS * BATCH * 2 * LENGTH
    # The parameters were those of the base run: its loss is not that of random ones.
    base = saved_leaves(folder / "base", STEPS, "trainable.")
    final = saved_leaves(finished, STEPS, "trainable.")
    moved = [np.abs(final[name] - base[name]).max() for name in base]
    assert 0 < max(moved) < 0.2


def test_the_reference_is_counted_once_and_saved(finished):
    record = json.loads((finished / "run.json").read_text())
    pairs = record["settings"]["preference"]["pairs"]
    assert sum(pairs) == 300 and min(pairs) >= 10
    trained = STEPS * BATCH * 2 * LENGTH
    assert record["cost"]["run_tokens"] == round(trained + pairs[0] * 2 * LENGTH / 3)
    first, last = (saved_leaves(finished, step, "banks.") for step in (4, STEPS))
    assert {name.split(".")[-1]: x.shape for name, x in last.items()} == {
        split: (n, 2) for split, n in zip(("train", "valid", "test"), pairs, strict=True)
    }
    for name, values in last.items():
        assert (values < 0).all()
        np.testing.assert_array_equal(values, first[name])


def test_held_out_pairs_are_scored_beside_the_reference(finished):
    values = scores(finished)
    for split in ("valid", "test"):
        low, accuracy, high = (
            values[f"{split}/preference_accuracy{end}"] for end in ("_low", "", "_high")
        )
        assert 0 <= low <= accuracy <= high <= 1
        assert values[f"{split}/preference_nats"] < math.log(2)
        assert values[f"{split}/preference_margin"] > 0
        assert 0 <= values[f"{split}/preference_reference_accuracy"] <= 1
        assert len(values[f"{split}/eval_set_sha256"]) == 64
    ctx, _, step = load_run(finished)
    again = harness.run_task("preference", ctx, step)
    assert {score["name"]: score["value"] for score in again["scores"]} == values


def test_a_model_of_preferences_continues_texts(finished):
    ctx, _, _ = load_run(finished)
    narrow = harness.narrow_to_objective(ctx, "causal_lm")
    assert isinstance(narrow.objective, CausalLM)
    assert text_model(narrow).reads.window == LENGTH
    assert harness.resolve_tasks(ctx.settings, ("sample", "preference")) == ("sample", "preference")
    with pytest.raises(harness.ConfigError, match="'bits_per_byte' evaluates the objective causal"):
        harness.resolve_tasks(ctx.settings, ("bits_per_byte",))


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits(finished, folder, tmp_path):
    """The reference is read from the checkpoint: the base run is needed no more."""
    init = f"--init_from={folder / 'base'}"
    assert run(*flags(folder, tmp_path, init, "--config.debug.inject_fault=sigterm@3")) == 75
    (folder / "base").rename(folder / "gone")
    try:
        assert run(*flags(folder, tmp_path, init)) == 0
    finally:
        (folder / "gone").rename(folder / "base")
    tiny_runs.assert_same_bits(finished, tmp_path, STEPS)
    assert scores(finished) == scores(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers", [("attention+mlp",), ("mamba2+none",), ("mamba2+mlp", "attention+none")]
)
def test_architectures_prefer_the_chosen_reply_of_pairs_that_they_never_saw(
    layers, folder, tmp_path
):
    """One device, because several on a few cores can miss each other's collectives under load."""
    more = {"model.layers": layers, "model.depth": 2, "train.steps": 60, "log.every": 20}
    more |= {"optimizer.learning_rate": 3e-3, "checkpoint.every": 0, "train.compile_cache": ""}
    extra = [f"--config.{name}={value}" for name, value in more.items()]
    flags_of_devices = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
    done = subprocess.run(
        [sys.executable, "train.py", *flags(folder, tmp_path / "run", *extra)],
        cwd=Path(train.__file__).parent,
        env={**os.environ, "XLA_FLAGS": flags_of_devices},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr[-2000:]
    record = json.loads((tmp_path / "run/eval/60/preference.json").read_text())
    values = {score["name"]: score["value"] for score in record["scores"]}
    assert values["test/preference_accuracy"] > 0.9 and values["valid/preference_accuracy"] > 0.9
    assert values["test/preference_margin"] > 0
    assert values["test/preference_nats"] < math.log(2)
