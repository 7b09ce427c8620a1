"""Questions with answers to choose from, and LAMBADA: by accuracy and by log-probability.

The right answer is likelier than the others after its context (`accuracy`), or likelier a byte
(`accuracy_by_byte`); of LAMBADA, which has one answer, every token of it must be the likeliest.
Accuracy emerges where log-probability just grows (arXiv:2304.15004), so `answer_nats` and
`answer_bits_per_byte` of the right answers stand beside it. Bytes are those of what is scored, the
space before an answer included. The files come from `python -m data.fetch evals`: no examples are
shown to the model, and contexts that a row does not hold lose their beginning.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from data import fetch
from errors import DataError
from eval.likelihood import likelihoods
from eval.task import Score, Subject

UNCONDITIONAL = 1_000_000  # documents from here on ask for answers without their questions


class Question(NamedTuple):
    pairs: tuple[tuple[str, str], ...]  # context and answer, a choice each
    right: int


def _task(name: str) -> type:
    class Answers:
        version: ClassVar[int] = 1
        objective: ClassVar[str] = "causal_lm"

        def __init__(self, splits: tuple[str, ...] = ()):
            pass

        def __call__(self, subject: Subject) -> Iterator[Score]:
            raw = fetch.read("evals", f"{name}.jsonl.gz", subject.settings.data.cache)
            return answered(subject, name, questions(raw, name))

    return Answers


TASKS = {name: _task(name) for name in ("lambada", *fetch.CHOICES)}


def answered(subject: Subject, name: str, asked: list[Question]) -> Iterator[Score]:
    """Scores of a list of questions."""
    pairs = [pair for question in asked for pair in question.pairs]
    found = iter(likelihoods(subject, pairs))
    right, by_byte, nats, size = 0, 0, 0.0, 0
    for question in asked:
        own = [next(found) for _ in question.pairs]
        lengths = np.array([len(answer.encode()) for _, answer in question.pairs])
        costs, here = np.array([one.nats for one in own]), question.right
        only = len(own) == 1
        right += own[0].greedy if only else int(np.argmin(costs)) == here
        by_byte += int(np.argmin(costs / lengths)) == here
        nats, size = nats + costs[here], size + int(lengths[here])
    n = len(asked)
    yield Score(f"{name}/accuracy", right / n, n)
    if any(len(question.pairs) > 1 for question in asked):
        yield Score(f"{name}/accuracy_by_byte", by_byte / n, n)
    yield Score(f"{name}/answer_nats", nats / n, n)
    yield Score(f"{name}/answer_bits_per_byte", nats / math.log(2) / size, size)


def questions(text: str, name: str) -> list[Question]:
    """Of the requests that the wheel holds: a line for each choice, together by document."""
    by_document: dict[int, list[dict[str, Any]]] = {}
    try:
        for line in text.splitlines():
            request = json.loads(line)
            if request["doc_id"] < UNCONDITIONAL:
                by_document.setdefault(request["doc_id"], []).append(request)
        return [_question(by_document[i]) for i in sorted(by_document)]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{name} is not as the wheel holds it ({error!r}); fetch it anew"
        ) from error


def _question(requests: list[dict[str, Any]]) -> Question:
    requests = sorted(requests, key=lambda request: request["idx"])
    asked = [request["request"] for request in requests]
    pairs = tuple((str(one["context"]), str(one["continuation"])) for one in asked)
    label = requests[0]["label"]
    right = label if isinstance(label, int) else 0  # LAMBADA: the word itself
    if not 0 <= right < len(pairs) or not all(answer for _, answer in pairs):
        raise ValueError(f"document {requests[0]['doc_id']} has no answer {right}")
    return Question(pairs, right)
