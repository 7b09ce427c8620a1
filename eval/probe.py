"""Frozen-feature probes: what learners of different objectives know, by one yardstick.

A logistic regression on a learner's features (the mean over a piece's tokens) tells the labels of
held-out text. Layer and penalty are those of the least loss on the probe's own valid part; scores
are of its test part, at full width and at one width common to all models (principal components).
Beside them stand the commonest label, a bag of words and the same architecture untrained. A label
that a bag of words tells within three points of the best is out of conclusions.

Of an encoder-decoder the encoder is probed; a denoising stack reads the piece as a prefix.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from eval.bag_of_words import bag_of_words
from eval.features import pooled, untrained
from eval.logistic import Logistic, fit, principal, standardised
from eval.passages import Piece, coded, pieces
from eval.task import Score, Subject

LABELS = ("source", "genre", "era", "book")
COMMON = 32  # the width common to all models
L2 = (1.0, 0.1, 0.01, 0.001, 0.0001)
MIDDLING = 0.01
WORDS = 2000  # the commonest of the probe's train part
MARGIN = 0.03  # a bag of words so close to the best leaves nothing to conclude


class Labelled(NamedTuple):
    """Pieces with one label, by the parts of the probe's split."""

    y: Int[np.ndarray, " N"]
    classes: int
    parts: dict[str, np.ndarray]  # indices into y


class Found(NamedTuple):
    accuracy: float
    nats: float
    layer: int
    l2: float


class Probe:
    version: ClassVar[int] = 1
    objective: ClassVar[str] = ""

    def __init__(self, splits: tuple[str, ...] = ("valid", "test"), labels=LABELS):
        self.splits, self.labels = splits, labels

    def __call__(self, subject: Subject) -> Iterator[Score]:
        text = pieces(self.splits)
        words = [piece.text for piece in text]
        own, begun = pooled(subject, words), pooled(untrained(subject), words)
        for label in self.labels:
            yield from judged(label, text, own, begun)


def judged(
    label: str,
    text: list[Piece],
    own: Float[np.ndarray, "N L D"],
    begun: Float[np.ndarray, "N L D"],
) -> Iterator[Score]:
    """All rows of one label; `begun` are features of the untrained architecture."""
    some, task = labelled(label, text)
    n = len(task.parts["test"])
    bag = bag_of_words([text[i].text for i in some], task.parts["train"], WORDS)
    plain = probed(bag[:, None], task)
    rows = {"": probed(own[some], task), "untrained_": probed(begun[some], task)}
    best = max(found.accuracy for found in rows.values())
    for name, found in rows.items():
        yield Score(f"{label}/{name}accuracy", found.accuracy, n)
        yield Score(f"{label}/{name}nats", found.nats, n)
    yield Score(f"{label}/layer", rows[""].layer)
    if own.shape[-1] >= COMMON:
        for name, features in (("", own), ("untrained_", begun)):
            found = probed(features[some], task, lambda x, t: principal(x, t, COMMON))
            best = max(best, found.accuracy)
            yield Score(f"{label}/{name}accuracy@{COMMON}", found.accuracy, n)
            yield Score(f"{label}/{name}nats@{COMMON}", found.nats, n)
    yield Score(f"{label}/bag_of_words_accuracy", plain.accuracy, n)
    yield Score(f"{label}/bag_of_words_nats", plain.nats, n)
    yield Score(f"{label}/majority_accuracy", majority(task), n)
    yield Score(f"{label}/out_of_conclusions", float(plain.accuracy >= best - MARGIN))


def labelled(label: str, text: list[Piece]) -> tuple[list[int], Labelled]:
    """The pieces of `text` that have this label, by number, and what is known of them."""
    some = [i for i, piece in enumerate(text) if label in piece.labels]
    y, classes = coded([text[i].labels[label] for i in some])
    where = np.array([text[i].part for i in some])
    return some, Labelled(y, classes, {p: np.flatnonzero(where == p) for p in set(where)})


def majority(task: Labelled) -> float:
    """The accuracy of always naming the commonest label of the train part."""
    common = np.bincount(task.y[task.parts["train"]]).argmax()
    return float(np.mean(task.y[task.parts["test"]] == common))


def probed(
    x: Float[np.ndarray, "N L D"],
    task: Labelled,
    reduced: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda x, train: x,
) -> Found:
    """The test score of the layer and penalty with the least loss on valid: first the layer, under
    a middling penalty, then the penalty."""
    train, valid, test = (task.parts[p] for p in ("train", "valid", "test"))

    def tried(features: np.ndarray, l2: float, start: Logistic | None) -> tuple[float, Logistic]:
        made = fit(features[train], task.y[train], task.classes, l2, start)
        return _scored(made, features[valid], task.y[valid])[1], made

    def seen(layer: int) -> np.ndarray:
        return reduced(standardised(x[:, layer], train), train)

    layers = range(x.shape[1])
    layer = min(layers, key=lambda i: tried(seen(i), MIDDLING, None)[0]) if len(layers) > 1 else 0
    features, path, made = seen(layer), list[tuple[float, float, Logistic]](), None
    for l2 in L2:  # each starts where the one before it ended
        nats, made = tried(features, l2, made)
        path.append((nats, l2, made))
    _, l2, made = min(path, key=lambda one: one[:2])
    return Found(*_scored(made, features[test], task.y[test]), layer, l2)


def _scored(
    made: Logistic, x: Float[np.ndarray, "N D"], y: Int[np.ndarray, " N"]
) -> tuple[float, float]:
    """Accuracy and nats."""
    logs = made.log_shares(x)
    return float(np.mean(logs.argmax(axis=1) == y)), float(-np.mean(logs[np.arange(len(y)), y]))
