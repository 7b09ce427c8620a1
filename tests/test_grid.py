"""The grid: every pair is there or refused with its reason; what thirty steps teach."""

import json

import numpy as np
import pytest

import train
from configs import grid
from objectives import OBJECTIVES
from training.command import guarded
from training.run import RunFolder

NOUNS = ["cat", "dog", "fox", "cow", "owl", "hen", "ant", "bee", "pig", "rat"]
LEARNERS = ("dense", "moe", "mamba2", "deltanet", "lstm", "hybrid")
JUDGED = {"causal_lm": "nats", "masked_lm": "masked_nats", "denoising": "denoised_nats"}
# test row of a task, and what it must be below: the unigram's nats of a byte
SIZES = {
    "model.width": 32,
    "model.depth": 2,
    "model.attention.heads": 2,
    "model.gated_deltanet.heads": 2,
    "model.moe.width": 64,
    "model.mamba2.state": 16,
    "model.mamba2.head_width": 16,
    "train.batch": 32,
    "train.length": 64,
    "train.steps": 30,
    "optimizer.learning_rate": 2e-2,
    "optimizer.warmup": 3,
    "checkpoint.every": 1000,
    "log.every": 5,
    "eval.batch": 32,
    "eval.splits": "test",
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
        some = rng.choice(NOUNS, 4)
        a, b = f"the {some[0]} and the {some[1]}", f"{some[1]} and {some[0]}"
        whole = f"the {some[0]} and the {some[1]} and the {some[2]} and the {some[3]}"
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
def test_thirty_steps_beat_what_knows_nothing(architecture, objective, text, tmp_path):
    """LM-type objectives the frequencies of bytes, the contrastive one its untrained encoder."""
    data = {"source": "jsonl", "path": text / "text.jsonl", "cache": text / "cache"}
    settings = SIZES | {f"data.{key}": value for key, value in data.items()}
    own = [f"--config.{key}={value}" for key, value in settings.items()]
    folder = tmp_path / "run"
    where = [f"--config=configs/grid.py:{architecture}-{objective}", f"--workdir={folder}"]
    assert guarded(train.run, [*where, *own]) == 0
    if objective == "contrastive":
        record = json.loads((folder / "eval" / "30" / "retrieval.json").read_text())
        found = {score["name"]: score["value"] for score in record["scores"]}
        assert found["test/recall@1"] > found["test/untrained_recall@1"]
        return
    last = RunFolder(folder).metrics()[-1]
    assert last[JUDGED[objective]] < unigram(text)
