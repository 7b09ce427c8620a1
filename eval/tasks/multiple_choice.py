"""Evaluates multiple-choice questions and LAMBADA by accuracy and by log-probability.

`accuracy` counts a question if the correct answer is more likely after its context than the other
answers; `accuracy_per_byte` compares log-probabilities per byte. A LAMBADA question has one answer,
and counts if every token of the answer is the most likely one. Accuracy emerges abruptly where
log-probability grows smoothly (arXiv:2304.15004), so `answer_nats` and `answer_bits_per_byte` of
the correct answers are reported too. Bytes are those of the scored text, the space before an answer
included. The files come from `python -m data.fetch evals`. The model sees no examples in its
prompt, and a context that is longer than a row loses its beginning.
"""

import json
import math
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np

from data import fetch
from errors import DataError
from eval.likelihood import compute_likelihoods
from eval.task import EvalContext, Score
from settings.json_types import JsonObject

# Documents with this id or a higher one request answers without their questions.
FIRST_UNCONDITIONAL_ID = 1_000_000


class Question(NamedTuple):
    """Holds the choices of a question and the index of the correct one."""

    choices: tuple[tuple[str, str], ...]  # Pairs (context, answer).
    answer_index: int


class MultipleChoice:
    """Evaluates the questions of one fetched file, such as lambada or piqa."""

    version: ClassVar[int] = 2

    def __init__(self, name: str, splits: tuple[str, ...] = ()):
        """Ignores the splits, since the task reads a file of its own."""
        self.name = name

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of all questions."""
        text = fetch.read_file("evals", f"{self.name}.jsonl.gz", ctx.settings.data.cache)
        return score_questions(ctx, self.name, parse_questions(text, self.name))


def score_questions(ctx: EvalContext, name: str, questions: list[Question]) -> Iterator[Score]:
    """Yields the scores of a list of questions, with `name` as their prefix."""
    pairs = [pair for question in questions for pair in question.choices]
    likelihoods = iter(compute_likelihoods(ctx, pairs))
    n_correct, n_correct_per_byte, nats, n_bytes = 0, 0, 0.0, 0
    for question in questions:
        choices = [next(likelihoods) for _ in question.choices]
        lengths = np.array([len(answer.encode()) for _, answer in question.choices])
        costs, index = np.array([choice.nats for choice in choices]), question.answer_index
        is_single = len(choices) == 1
        n_correct += choices[0].is_greedy if is_single else int(np.argmin(costs)) == index
        n_correct_per_byte += int(np.argmin(costs / lengths)) == index
        nats, n_bytes = nats + costs[index], n_bytes + int(lengths[index])
    n = len(questions)
    yield Score(f"{name}/accuracy", n_correct / n, n)
    if any(len(question.choices) > 1 for question in questions):
        yield Score(f"{name}/accuracy_per_byte", n_correct_per_byte / n, n)
    yield Score(f"{name}/answer_nats", nats / n, n)
    yield Score(f"{name}/answer_bits_per_byte", nats / math.log(2) / n_bytes, n_bytes)


def parse_questions(text: str, name: str) -> list[Question]:
    """Parses JSON lines with one request per choice, and groups them by document.

    Raises:
        DataError: if the text does not have the format of the fetched file.
    """
    requests_by_id: dict[int, list[JsonObject]] = {}
    try:
        for line in filter(None, text.split("\n")):  # U+2028 is text in a line of JSON.
            request = json.loads(line)
            if request["doc_id"] < FIRST_UNCONDITIONAL_ID:
                requests_by_id.setdefault(request["doc_id"], []).append(request)
        return [_parse_question(requests_by_id[i]) for i in sorted(requests_by_id)]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{name} does not have the format of the wheel ({error!r}); fetch it again"
        ) from error


def _parse_question(requests: list[JsonObject]) -> Question:
    requests = sorted(requests, key=lambda request: request["idx"])
    texts = [request["request"] for request in requests]
    choices = tuple((str(text["context"]), str(text["continuation"])) for text in texts)
    label = requests[0]["label"]
    index = label if isinstance(label, int) else 0  # The label of LAMBADA is the word itself.
    if not 0 <= index < len(choices) or not all(answer for _, answer in choices):
        raise ValueError(f"document {requests[0]['doc_id']} has no answer {index}")
    return Question(choices, index)
