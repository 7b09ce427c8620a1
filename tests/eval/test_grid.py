"""Tests the grid: each pair is listed or refused with a reason, and training reduces the loss."""

import functools
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from configs import families, grid
from data.open_stores import open_data
from eval.task import EvalContext
from eval.tasks.retrieval import Retrieval
from objectives import OBJECTIVES
from settings.tree import freeze
from training import mesh as meshes
from training.loop import part_batches, to_device
from training.program import make_program
from training.run.cli_errors import run_command
from training.settings import Settings, resolve

NOUNS = ["cat", "dog", "fox", "cow", "owl", "hen", "ant", "bee", "pig", "rat"]
LEARNERS = ("dense", "moe", "mamba1", "mamba2", "lstm", "hybrid")
FAMILIES = sorted(p.stem for p in Path(families.__file__).parent.glob("[a-z]*.py"))
STEPS, FEW = 30, 12
LOSS_METRICS = {
    **{"causal_lm": "nats", "masked_lm": "masked_nats", "denoising": "denoised_nats"},
    "preference": "preference_nats",
}
SIZES = {
    "model.width": 32,
    "model.depth": 2,
    "model.attention.heads": 2,
    "model.moe.width": 64,
    "model.mamba2.state_size": 16,
    "model.mamba2.head_dim": 16,
    "train.batch_size": 32,
    "train.seq_len": 64,
    "train.steps": STEPS,
    "optimizer.name": "muon",
    "optimizer.learning_rate": 2e-2,
    "optimizer.warmup": 3,
    "eval.batch_size": 32,
    "masked_lm.mask_rate": 0.3,
}


def test_a_pair_is_listed_once_and_refused_with_a_reason():
    # covers C7
    refused = {
        (a, o): reason
        for a in grid.ARCHITECTURES
        for o in grid.OBJECTIVE_NAMES
        if (reason := grid.unsupported_reason(a, o))
    }
    assert set(refused) == {("encdec", o) for o in grid.OBJECTIVE_NAMES if o != "denoising"}
    assert all("model.encoder.depth" in reason for reason in refused.values())
    c = grid.get_config("mamba2-contrastive")
    assert c.objective == "contrastive" and c.model.layers == ("mamba2+none",)


@pytest.mark.parametrize("pair", ["mamba3-causal_lm", "mamba2-chess", "mamba2"])
def test_an_unknown_pair_is_refused(pair, capsys):
    flag = f"--config=configs/grid.py:{pair}"
    assert run_command(train.run, [flag, "--dry_run"]) == 2
    assert "is not ARCHITECTURE-OBJECTIVE" in capsys.readouterr().err


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Writes JSON lines with a text, a pair of texts and a preference for capitals each."""
    folder, rng, lines = tmp_path_factory.mktemp("grid"), np.random.default_rng(0), []
    for _ in range(1500):
        nouns = [str(word) for word in rng.choice(NOUNS, 4)]
        a, b = f"the {nouns[0]} and {nouns[1]} {nouns[2]}", " ".join(nouns[:3]).upper()
        sentence = " ".join(f"the {word} and" for word in nouns)
        record = {"a": a, "b": b, "text": sentence}
        preference = {"prompt": a, "chosen": b, "rejected": b.lower()}
        lines.append(json.dumps(record | preference))
    (folder / "text.jsonl").write_text("\n".join(lines))
    return folder


def unigram(text) -> float:
    """Returns the nats per byte of a model of byte frequencies."""
    full_text = " ".join(json.loads(line)["text"] for line in (text / "text.jsonl").open())
    share = np.bincount(np.frombuffer(full_text.encode(), np.uint8)) / len(full_text)
    return float(-np.sum(share[share > 0] * np.log(share[share > 0])))


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("architecture", LEARNERS)
def test_thirty_steps_beat_what_knows_nothing(architecture, objective, text):
    """Language models beat the byte frequencies, a contrastive one its untrained encoder, and one
    of preferences a coin."""
    c = grid.get_config(f"{architecture}-{objective}")
    if architecture == "hybrid":
        c.model.layers = ("mamba2+mlp", "attention+mlp")  # Two layers hold both mixers.
    change(c, SIZES)
    ctx, losses = train_for(c, text, STEPS)
    if objective in LOSS_METRICS:
        guess = 0.8 * np.log(2) if objective == "preference" else unigram(text)
        assert np.mean(losses[-5:]) < guess
        return
    scores = {score.name: score.value for score in Retrieval(splits=("test",))(ctx)}
    assert scores["test/recall@1"] > scores["test/untrained_recall@1"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_family_learns(family, text):
    """A family at its tiny size reduces its loss in a few steps."""
    c = importlib.import_module(f"configs.families.{family}").get_config("tiny")
    change(c, {"train.batch_size": 8, "train.seq_len": 64, "train.steps": FEW})
    change(c, {"optimizer.learning_rate": 2e-3, "optimizer.warmup": 2})
    _, losses = train_for(c, text, FEW)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1


def change(c, values):
    for key, value in values.items():
        *sections, name = key.split(".")
        functools.reduce(lambda tree, part: tree[part], sections, c)[name] = value


def train_for(c, text, steps):
    """Returns the context after some steps on `text`, and the loss of each step."""
    c.data.source, c.data.path = "jsonl", str(text / "text.jsonl")
    c.data.cache, c.data.test_share = str(text / "cache"), 0.1
    settings = freeze(Settings, c)
    data = open_data(settings.data, settings.store_kinds)
    settings = resolve(settings, data.tokenizer.vocab_size)
    mesh = meshes.make_mesh(settings.mesh, jax.devices()[:1])
    program = make_program(settings, mesh)
    step = program.compile_train_step()
    batches = part_batches(settings, settings.mixture_parts()[0], data, mesh)
    with jax.set_mesh(mesh):
        state, losses = program.init(), []
        for i in range(steps):
            state, metrics = step(state, to_device(program, i, batches[i]))
            if settings.objective in LOSS_METRICS:
                losses.append(float(metrics[LOSS_METRICS[settings.objective]].mean))
    return EvalContext(state.trainable, mesh, settings, program.objective, data), losses
