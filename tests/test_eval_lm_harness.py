"""The adapter for lm-evaluation-harness: an oracle's requests, and its own harness where it is."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from oracle import VOCAB, nats, oracle, subject, successor

from errors import ConfigError
from eval.lm_harness import Requests, language_model


def requests(*arguments) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=args) for args in arguments]


def test_likelihoods_of_an_oracle():
    model, table = Requests(oracle(length=8)), successor()
    asked = requests(("ab", "cd"), ("ab", "ce"), ("", "abc"))
    found = model.loglikelihood(asked)
    expected = [-nats(table, "cd", "ab").sum(), -nats(table, "ce", "ab").sum()]
    assert [f[0] for f in found[:2]] == pytest.approx(expected, rel=1e-5)
    assert [f[1] for f in found] == [True, False, False]  # nothing leads from bos to "a"
    assert all(type(f[0]) is float and type(f[1]) is bool for f in found)
    long = "a text of more bytes than the row of eight holds"
    rolling = model.loglikelihood_rolling(requests((long,), ("abc",)))
    assert rolling == pytest.approx([-nats(table, long).sum(), -nats(table, "abc").sum()], rel=1e-5)
    assert rolling[1] == pytest.approx(found[2][0])


def test_texts_of_an_oracle_stop_where_they_are_told():
    model = Requests(oracle(length=64))
    asked = requests(
        ("abc", {"until": ["h"], "max_gen_toks": 20}),
        ("abc", {"until": ["jk", "hi"], "max_gen_toks": 20}),
        ("012", {"until": [], "max_gen_toks": 4}),
        ("mn", {"until": "q", "max_gen_toks": 4, "do_sample": False, "temperature": 0.7}),
        ("a longer prompt, so that its batch has another width, x", {"max_gen_toks": 2}),
    )
    assert model.generate_until(asked) == ["defg", "defg", "3456", "op", "yz"]


def with_batch(judged, batch: int):
    evaluation = dataclasses.replace(judged.settings.eval, batch=batch)
    return judged._replace(settings=dataclasses.replace(judged.settings, eval=evaluation))


@pytest.fixture(scope="module")
def reader():
    cfg = tiny.config(depth=1, vocab=VOCAB)
    return subject(tiny.model(cfg), length=32, config=cfg, batch=1)


def test_texts_depend_on_neither_batch_size_nor_neighbours(reader):
    prompts = ["a", "some words", "a prompt that is far longer than the row holds", "", "bcd"]
    asked = requests(*((prompt, {"max_gen_toks": 6}) for prompt in prompts))
    alone = [Requests(reader).generate_until([one])[0] for one in asked]
    assert len(set(alone)) > 2
    for batch in (1, 3):
        model = Requests(with_batch(reader, batch))
        assert model.generate_until(asked) == alone
        assert model.generate_until(asked[::-1]) == alone[::-1]


def test_draws_depend_on_the_request_alone(reader):
    settings = {"max_gen_toks": 6, "do_sample": True, "temperature": 2.0, "top_k": 50}
    asked = requests(*(("abc", settings) for _ in range(3)))
    found = [Requests(with_batch(reader, n)).generate_until(asked) for n in (1, 3)]
    assert found[0] == found[1] and len(set(found[0])) == 3


def test_what_cannot_be_answered_is_refused(reader, monkeypatch):
    masked = dataclasses.replace(reader.settings, objective="masked_lm")
    with pytest.raises(ConfigError, match="the run is of objective masked_lm; give a run of"):
        Requests(reader._replace(settings=masked))
    with pytest.raises(ConfigError, match="asks for num_beams; known are until, max_gen_toks"):
        Requests(reader).generate_until(requests(("a", {"num_beams": 4})))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ConfigError, match=r"pip install 'isoflop\[lm-eval\]'"):
        language_model(reader)


def test_lm_eval_finds_the_oracle_right(tmp_path, monkeypatch):
    """Their evaluator on local JSON lines: choices, a perplexity and a text to write."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"q": s[:2], "a": s[2:4], "b": "z!", "gold": 0, "then": s[2]} for s in ("abcd", "qrst")]
    rows += [{"q": "mn", "a": "pq", "b": "op", "gold": 0, "then": "o"}]  # the oracle says b
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    there = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    there |= {"test_split": "test"}
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
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name} | there | task))
    found = lm_eval.simple_evaluate(
        model=language_model(oracle()),
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert found["choices"]["acc,none"] == pytest.approx(2 / 3)
    assert found["writing"]["exact_match,none"] == 1
    table, texts = successor(), [row["q"] + row["a"] for row in rows]
    bits = sum(nats(table, text).sum() for text in texts) / np.log(2) / (4 * 3)
    assert found["text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
