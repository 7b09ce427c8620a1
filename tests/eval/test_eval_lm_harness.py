"""Tests the adapter for lm-evaluation-harness, also with the library itself if it is installed."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from oracle import VOCAB, eval_context, nats, oracle, successor

from errors import ConfigError
from eval.adapters.lm_harness import LmEvalModel, make_lm_eval_model
from objectives import MaskedLM


def requests(*arguments) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=args) for args in arguments]


def test_likelihoods_of_an_oracle():
    model, table = LmEvalModel(oracle(length=8)), successor()
    results = model.loglikelihood(requests(("ab", "cd"), ("ab", "ce"), ("", "abc")))
    expected = [-nats(table, "cd", "ab").sum(), -nats(table, "ce", "ab").sum()]
    assert [r[0] for r in results[:2]] == pytest.approx(expected, rel=1e-5)
    assert [r[1] for r in results] == [True, False, False]  # nothing leads from bos to "a"
    assert all(type(r[0]) is float and type(r[1]) is bool for r in results)
    long = "a text of more bytes than the row of eight holds"
    rolling = model.loglikelihood_rolling(requests((long,), ("abc",)))
    assert rolling == pytest.approx([-nats(table, long).sum(), -nats(table, "abc").sum()], rel=1e-5)
    assert rolling[1] == pytest.approx(results[2][0])


def test_texts_of_an_oracle_stop_where_they_are_told():
    model = LmEvalModel(oracle(length=64))
    batch = requests(
        ("abc", {"until": ["h"], "max_gen_toks": 20}),
        ("abc", {"until": ["jk", "hi"], "max_gen_toks": 20}),
        ("012", {"until": [], "max_gen_toks": 4}),
        ("mn", {"until": "q", "max_gen_toks": 4, "do_sample": False, "temperature": 0.7}),
        ("a longer prompt, so that its batch has another width, x", {"max_gen_toks": 2}),
    )
    assert model.generate_until(batch) == ["defg", "defg", "3456", "op", "yz"]


def with_batch(ctx, batch_size: int):
    evaluation = dataclasses.replace(ctx.settings.eval, batch_size=batch_size)
    return ctx._replace(settings=dataclasses.replace(ctx.settings, eval=evaluation))


@pytest.fixture(scope="module")
def reader():
    cfg = tiny.config(depth=1, vocab_size=VOCAB)
    return eval_context(tiny.model(cfg), length=32, config=cfg, batch=1)


def test_texts_depend_on_neither_batch_size_nor_neighbours(reader):
    prompts = ["a prompt that is far longer than the row holds", "", "bcd"]
    batch = requests(*((prompt, {"max_gen_toks": 6}) for prompt in prompts))
    alone = [LmEvalModel(reader).generate_until([request])[0] for request in batch]
    assert len(set(alone)) > 2
    for n in (1, 3):
        model = LmEvalModel(with_batch(reader, n))
        assert model.generate_until(batch) == alone
        assert model.generate_until(batch[::-1]) == alone[::-1]


def test_draws_depend_on_the_request_alone(reader):
    settings = {"max_gen_toks": 6, "do_sample": True, "temperature": 2.0, "top_k": 50}
    batch = requests(*(("abc", settings) for _ in range(3)))
    texts = [LmEvalModel(with_batch(reader, n)).generate_until(batch) for n in (1, 3)]
    assert texts[0] == texts[1] and len(set(texts[0])) == 3


def test_what_cannot_be_answered_is_refused(reader, monkeypatch):
    masked = dataclasses.replace(reader.settings, objective="masked_lm")
    with pytest.raises(ConfigError, match="the run is of objective masked_lm; give a run of"):
        LmEvalModel(reader._replace(settings=masked, objective=MaskedLM()))
    with pytest.raises(ConfigError, match="has num_beams; known keys are until, max_gen_toks"):
        LmEvalModel(reader).generate_until(requests(("a", {"num_beams": 4})))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ConfigError, match=r"pip install 'isoflop\[lm-eval\]'"):
        make_lm_eval_model(reader)


def test_lm_eval_finds_the_oracle_right(tmp_path, monkeypatch):
    """Their evaluator on local JSON lines: choices, a perplexity and a text to write."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"q": s[:2], "a": s[2:4], "b": "z!", "gold": 0, "then": s[2]} for s in ("abcd", "qrst")]
    rows += [{"q": "mn", "a": "pq", "b": "op", "gold": 0, "then": "o"}]  # the oracle says b
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    common |= {"test_split": "test"}
    tasks = {
        "choices": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_choice": "{{[a, b]}}",
            "doc_to_target": "gold",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        },
        "text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{q}}{{a}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        "writing": {
            "output_type": "generate_until",
            "doc_to_text": "{{q}}",
            "doc_to_target": "{{then}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 1, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, task in tasks.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name} | common | task))
    results = lm_eval.simple_evaluate(
        model=make_lm_eval_model(oracle()),
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert results["choices"]["acc,none"] == pytest.approx(2 / 3)
    assert results["writing"]["exact_match,none"] == 1
    table, texts = successor(), [row["q"] + row["a"] for row in rows]
    bits = sum(nats(table, text).sum() for text in texts) / np.log(2) / (4 * 3)
    assert results["text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
