"""Tests contrastive training and mixtures from the command line: files, metrics and scores."""

import json

import numpy as np
import pytest
import tiny_runs
from data_stores import distinct, made_store
from oracle import Bytes
from tiny_runs import run

from eval import harness
from eval.load_run import load_run
from eval.task import EvalContext
from eval.tasks.retrieval import embed_texts, make_retrieval_set
from objectives import Contrastive
from training.run.folder import RunFolder
from training.settings import Settings, TrainConfig

NOUNS = ["cat", "dog", "fox", "cow", "owl", "hen", "ant", "bee", "pig", "rat"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Writes JSON lines, each with a pair of texts that share their words and a longer text."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(300):
        nouns = rng.choice(NOUNS, 3)
        a, b = f"the {nouns[0]} and {nouns[1]} see a {nouns[2]}", " ".join(nouns[::-1])
        lines.append(json.dumps({"a": a, "b": b, "text": f"{a}. {b}"}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


def flags(pairs, workdir, *extra: str) -> list[str]:
    settings = {
        "objective": "contrastive",
        "data.source": "jsonl",
        "data.path": pairs / "pairs.jsonl",
        "data.valid_share": 0.1,
        "data.test_share": 0.1,
        "data.cache": pairs / "cache",
        "model.layers": "attention+none",  # less to compile
        "train.batch_size": 16,
        "eval.batch_size": 16,
    }
    return tiny_runs.flags(settings, workdir, *extra)


def scores(workdir, task="retrieval") -> dict:
    record = json.loads((workdir / "eval" / "6" / f"{task}.json").read_text())
    return {score["name"]: score["value"] for score in record["scores"]}


# Two microbatches, with hard negatives from a pool that is larger than the training split.
MINED = (
    "--config.train.grad_accum_steps=2",
    "--config.contrastive.mining.refresh_every=4",
    "--config.contrastive.mining.pool_size=300",
)


@pytest.fixture(scope="module")
def mined_run(pairs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "mined"
    assert run(*flags(pairs, workdir, *MINED)) == 0
    return workdir


def test_a_run_is_judged_beside_what_needs_no_training(mined_run):
    rows = RunFolder(mined_run).read_metrics()
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"recall@1", "alignment", "uniformity", "temperature"} <= set(rows[0])
    assert rows[-1]["tokens"] == 6 * 16 * 16 * 2
    assert all(-1 <= row["hard_negative_cosine"] <= 1 for row in rows)
    record = json.loads((mined_run / "run.json").read_text())
    assert record["cost"]["run_tokens"] == round((6 * 16 * 3 + (6 * 16 + 2 * 300) / 3) * 16)
    assert record["cost"]["terms"]["head.logits"]["model"] == 0
    ctx, _, _ = load_run(mined_run)
    x = embed_texts(ctx, ["the cat", "the dog and a very long text that a row does not hold"])
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    values = scores(mined_run)
    for name in ("", "bm25_", "bag_of_words_", "bag_of_embeddings_", "untrained_"):
        assert 0 <= values[f"test/{name}recall@1"] <= values[f"test/{name}mrr"] <= 1
    assert values["test/recall@1_low"] <= values["test/recall@1"] <= values["test/recall@1_high"]
    assert len(values["test/eval_set_sha256"]) == 64


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_losses(mined_run, pairs, tmp_path):
    """The run stops between two readings of the pool, whose vectors the checkpoint holds."""
    assert run(*flags(pairs, tmp_path, *MINED, "--config.debug.inject_fault=sigterm@3")) == 75
    assert run(*flags(pairs, tmp_path, *MINED)) == 0
    rows = [RunFolder(folder).read_metrics() for folder in (mined_run, tmp_path)]
    assert [r["data_hash"] for r in rows[0]] == [r["data_hash"] for r in rows[1]]
    for name in ("loss", "hard_negative_cosine", "grad_norm"):
        assert [r[name] for r in rows[0]] == [r[name] for r in rows[1]]


def test_a_text_without_two_halves_is_no_candidate(tmp_path):
    """A document of 15 tokens is split into pieces of 14 tokens and of 1 token."""
    objective = Contrastive(positives="split_text")
    settings = Settings(
        objective="contrastive", contrastive=objective, train=TrainConfig(seq_len=16)
    )
    store = made_store(tmp_path / "s", distinct([15, 15, 9, 1]))
    ctx = EvalContext(None, None, settings, objective, Bytes())
    pairs = make_retrieval_set(ctx, store)
    assert len(pairs.rows) == 3 and all(row["segment_ids"].any(-1).all() for row in pairs.rows)


@pytest.mark.slow
def test_candidates_are_the_same_for_every_model(mined_run):
    ctx, _, _ = load_run(mined_run)
    first = list(harness.TASKS["retrieval"](splits=("test",))(ctx))
    copy = ctx._replace(settings=ctx.settings)
    second = list(harness.TASKS["retrieval"](splits=("test",))(copy))
    assert first == second
    assert {s.name: s.value for s in first}["test/mrr"] == pytest.approx(
        scores(mined_run)["test/mrr"]
    )


@pytest.mark.slow
def test_a_mixture_trains_and_judges_all_its_parts(pairs, tmp_path):
    mixed = ("--config.objective=mixture", "--config.train.grad_accum_steps=2")
    assert run(*flags(pairs, tmp_path, *mixed)) == 0
    rows = RunFolder(tmp_path).read_metrics()
    assert {"causal_lm/nats", "contrastive/contrastive_nats", "contrastive/recall@1"} <= set(
        rows[0]
    )
    expected = rows[0]["causal_lm/nats"] + 0.1 * rows[0]["contrastive/contrastive_nats"]
    assert rows[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert "test/recall@1" in scores(tmp_path)
    assert 1 < scores(tmp_path, "bits_per_byte")["test/bits_per_byte"] < 12


@pytest.mark.slow
def test_a_causal_run_begins_a_contrastive_one(pairs, tmp_path, capsys):
    """The model is loaded, and the head of the new objective is initialized."""
    causal, first, second = (tmp_path / name for name in ("causal", "first", "second"))
    head = ("--config.contrastive.learn_temperature=true", "--config.contrastive.pooling=attention")
    short = ("--config.train.steps=2", "--config.eval.tasks=retrieval")
    tasks = ("--config.objective=causal_lm", "--config.eval.tasks=bits_per_byte")
    assert run(*flags(pairs, causal, *short, *tasks)) == 0
    tiny = ("--config.optimizer.learning_rate=1e-9", *head, *short)
    assert run(*flags(pairs, first, *tiny, f"--init_from={causal}")) == 0
    a, b = (tiny_runs.saved_leaves(folder, 2, "trainable.") for folder in (causal, first))
    assert set(b) > set(a)
    for name in a:
        if name.startswith("trainable.model."):
            np.testing.assert_allclose(a[name], b[name], atol=1e-6, err_msg=name)
    assert b["trainable.head.log_temperature"] == pytest.approx(np.log(0.05), abs=1e-5)
    bpe = (
        "--config.data.tokenizer=bpe:300",
        f"--init_from={causal}",
        "--config.model.vocab_size=409",
    )
    assert run(*flags(pairs, second, *tiny, *bpe)) == 66
    assert "was trained with tokenizer" in capsys.readouterr().err
