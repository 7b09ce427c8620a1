"""The grid: every pair is there or refused with its reason; what thirty steps teach."""

import functools
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from configs import families, grid
from data import open_data
from eval.retrieval import Retrieval
from eval.task import Subject
from objectives import OBJECTIVES
from training import mesh as meshes
from training.command import guarded
from training.loop import placed, stream
from training.program import program
from training.settings import Settings, resolved
from training.tree import frozen

NOUNS = ["cat", "dog", "fox", "cow", "owl", "hen", "ant", "bee", "pig", "rat"]
LEARNERS = ("dense", "moe", "mamba1", "mamba2", "lstm", "hybrid")
FAMILIES = sorted(p.stem for p in Path(families.__file__).parent.glob("[a-z]*.py"))
STEPS, FEW = 30, 12
JUDGED = {"causal_lm": "nats", "masked_lm": "masked_nats", "denoising": "denoised_nats"}
SIZES = {
    "model.width": 32,
    "model.depth": 2,
    "model.attention.heads": 2,
    "model.moe.width": 64,
    "model.mamba2.state": 16,
    "model.mamba2.head_width": 16,
    "train.batch": 32,
    "train.length": 64,
    "train.steps": STEPS,
    "optimizer.name": "muon",
    "optimizer.learning_rate": 2e-2,
    "optimizer.warmup": 3,
    "eval.batch": 32,
    "masked_lm.rate": 0.3,
}


def test_a_pair_is_listed_once_and_refused_with_a_reason():
    # covers C7
    refused = {
        (a, o): why for a in grid.ARCHITECTURES for o in grid.KINDS if (why := grid.refusal(a, o))
    }
    assert set(refused) == {("encdec", o) for o in grid.KINDS if o != "denoising"}
    assert all("model.encoder.depth" in why for why in refused.values())
    c = grid.get_config("mamba2-contrastive")
    assert c.objective == "contrastive" and c.model.layers == ("mamba2+none",)


@pytest.mark.parametrize("pair", ["mamba3-causal_lm", "mamba2-chess", "mamba2"])
def test_an_unknown_pair_is_refused(pair, capsys):
    flag = f"--config=configs/grid.py:{pair}"
    assert guarded(train.run, [flag, "--dry_run"]) == 2
    assert "is no pair" in capsys.readouterr().err


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Lines that are a text and a pair; the unigram costs what the frequencies of bytes say."""
    folder, rng, lines = tmp_path_factory.mktemp("grid"), np.random.default_rng(0), []
    for _ in range(1500):
        some = [str(word) for word in rng.choice(NOUNS, 4)]
        a, b = f"the {some[0]} and {some[1]} {some[2]}", " ".join(some[:3]).upper()
        whole = " ".join(f"the {word} and" for word in some)
        lines.append(json.dumps({"a": a, "b": b, "text": whole}))
    (folder / "text.jsonl").write_text("\n".join(lines))
    return folder


def unigram(text) -> float:
    """Nats of a byte by frequency."""
    whole = " ".join(json.loads(line)["text"] for line in (text / "text.jsonl").open())
    share = np.bincount(np.frombuffer(whole.encode(), np.uint8)) / len(whole)
    return float(-np.sum(share[share > 0] * np.log(share[share > 0])))


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("architecture", LEARNERS)
def test_thirty_steps_beat_what_knows_nothing(architecture, objective, text):
    """LM-type objectives the frequencies of bytes, the contrastive one its untrained encoder."""
    c = grid.get_config(f"{architecture}-{objective}")
    if architecture == "hybrid":
        c.model.layers = ("mamba2+mlp", "attention+mlp")  # of both in two layers
    change(c, SIZES)
    subject, losses = taught(c, text, STEPS)
    if objective in JUDGED:
        assert np.mean(losses[-5:]) < unigram(text)
        return
    found = {score.name: score.value for score in Retrieval(splits=("test",))(subject)}
    assert found["test/recall@1"] > found["test/untrained_recall@1"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_family_learns(family, text):
    """At its tiny size, in a few steps: what it says of the next ones costs less."""
    c = importlib.import_module(f"configs.families.{family}").get_config("tiny")
    change(c, {"train.batch": 8, "train.length": 64, "train.steps": FEW})
    change(c, {"optimizer.learning_rate": 2e-3, "optimizer.warmup": 2})
    _, losses = taught(c, text, FEW)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1


def change(c, values):
    for key, value in values.items():
        *sections, name = key.split(".")
        functools.reduce(lambda tree, part: tree[part], sections, c)[name] = value


def taught(c, text, steps):
    """What `c` is after some steps on `text`, and the loss of each."""
    c.data.source, c.data.path = "jsonl", str(text / "text.jsonl")
    c.data.cache, c.data.test_share = str(text / "cache"), 0.1
    settings = frozen(Settings, c)
    data = open_data(settings.data, settings.reads)
    settings = resolved(settings, data.tokenizer.vocab)
    mesh = meshes.build(settings.mesh, jax.devices()[:1])
    made = program(settings, mesh)
    step, batches = made.compiled(), stream(settings, settings.members()[0], data, mesh)
    with jax.set_mesh(mesh):
        state, losses = made.init(), []
        for i in range(steps):
            state, metrics = step(state, placed(made, i, batches[i]))
            if settings.objective in JUDGED:
                losses.append(float(metrics[JUDGED[settings.objective]].mean))
    return Subject(state.learner, mesh, settings, made.objective, data), losses
