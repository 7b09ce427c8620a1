"""Evaluates frozen features with linear probes, on the same scale for all objectives.

A logistic regression on a model's features (means over the tokens of a passage) predicts the labels
of held-out text. Layer and penalty are those with the lowest loss on the valid part of the probe's
own split. Scores are those of its test part, at full width and at one width common to all models
(principal components). Baselines are the most common label, a bag of words, and the same
architecture untrained. A label is uninformative if a bag of words predicts it within three points
of the best probe.

The encoder of an encoder-decoder is probed. A denoising model without an encoder reads the passage
as a prefix.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from eval.baselines.bag_of_words import bag_of_words
from eval.baselines.labelled_passages import LabelledPassage, encode_labels, load_passages
from eval.baselines.logistic import LogisticRegression, fit_logistic, pca, standardize
from eval.features import pooled_features, with_random_init
from eval.task import EvalContext, Score

LABELS = ("source", "genre", "era", "book")
COMMON_WIDTH = 32  # Number of principal components at which all models are compared.
L2_PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)
LAYER_SEARCH_L2 = 0.01
BASELINE_WORDS = 2000  # Number of most common words in the probe's train part.
BASELINE_MARGIN = 0.03  # A bag of words this close to the best probe makes a label uninformative.


class ProbeDataset(NamedTuple):
    """Holds the classes of passages with one label, and the parts of the probe's split."""

    y: Int[np.ndarray, " N"]
    n_classes: int
    split_indices: dict[str, np.ndarray]  # Indices into y.


class LinearProbeResult(NamedTuple):
    """Holds the test scores of a probe, and the layer and penalty that were selected."""

    accuracy: float
    nats: float
    layer: int
    l2: float


class LinearProbe:
    """Measures how well a linear probe on frozen features predicts labels of passages."""

    version: ClassVar[int] = 1

    def __init__(self, splits: tuple[str, ...] = ("valid", "test"), labels=LABELS):
        self.splits, self.labels = splits, labels

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every label."""
        passages = load_passages(self.splits)
        texts = [passage.text for passage in passages]
        trained = pooled_features(ctx, texts)
        untrained = pooled_features(with_random_init(ctx), texts)
        for label in self.labels:
            yield from evaluate_label(label, passages, trained, untrained)


def evaluate_label(
    label: str,
    passages: list[LabelledPassage],
    trained_features: Float[np.ndarray, "N L D"],
    untrained_features: Float[np.ndarray, "N L D"],
) -> Iterator[Score]:
    """Yields the scores of one label, of the trained model, the untrained model and baselines."""
    indices, dataset = make_probe_dataset(label, passages)
    n = len(dataset.split_indices["test"])
    bag = bag_of_words(
        [passages[i].text for i in indices], dataset.split_indices["train"], BASELINE_WORDS
    )
    baseline = fit_probe(bag[:, None], dataset)
    results = {
        "": fit_probe(trained_features[indices], dataset),
        "untrained_": fit_probe(untrained_features[indices], dataset),
    }
    best = max(result.accuracy for result in results.values())
    for name, result in results.items():
        yield Score(f"{label}/{name}accuracy", result.accuracy, n)
        yield Score(f"{label}/{name}nats", result.nats, n)
    yield Score(f"{label}/layer", results[""].layer)
    if trained_features.shape[-1] >= COMMON_WIDTH:
        for name, features in (("", trained_features), ("untrained_", untrained_features)):
            result = fit_probe(features[indices], dataset, lambda x, t: pca(x, t, COMMON_WIDTH))
            best = max(best, result.accuracy)
            yield Score(f"{label}/{name}accuracy@{COMMON_WIDTH}", result.accuracy, n)
            yield Score(f"{label}/{name}nats@{COMMON_WIDTH}", result.nats, n)
    yield Score(f"{label}/bag_of_words_accuracy", baseline.accuracy, n)
    yield Score(f"{label}/bag_of_words_nats", baseline.nats, n)
    yield Score(f"{label}/majority_accuracy", majority_accuracy(dataset), n)
    yield Score(f"{label}/uninformative", float(baseline.accuracy >= best - BASELINE_MARGIN))


def make_probe_dataset(
    label: str, passages: list[LabelledPassage]
) -> tuple[list[int], ProbeDataset]:
    """Returns the indices of the passages that have this label, and their data set."""
    indices = [i for i, passage in enumerate(passages) if label in passage.labels]
    y, n_classes = encode_labels([passages[i].labels[label] for i in indices])
    splits = np.array([passages[i].probe_split for i in indices])
    split_indices = {name: np.flatnonzero(splits == name) for name in set(splits)}
    return indices, ProbeDataset(y, n_classes, split_indices)


def majority_accuracy(dataset: ProbeDataset) -> float:
    """Returns the test accuracy of always predicting the most common label of the train part."""
    most_common = np.bincount(dataset.y[dataset.split_indices["train"]]).argmax()
    return float(np.mean(dataset.y[dataset.split_indices["test"]] == most_common))


def fit_probe(
    x: Float[np.ndarray, "N L D"],
    dataset: ProbeDataset,
    transform: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda x, train: x,
) -> LinearProbeResult:
    """Returns the test scores of the layer and the penalty with the lowest loss on the valid part.

    The layer is selected first, with the penalty LAYER_SEARCH_L2, and then the penalty. `transform`
    gets the standardized features of a layer and the indices of the train part.
    """
    train, valid, test = (dataset.split_indices[name] for name in ("train", "valid", "test"))

    def fit(
        features: np.ndarray, l2: float, init: LogisticRegression | None
    ) -> tuple[float, LogisticRegression]:
        classifier = fit_logistic(features[train], dataset.y[train], dataset.n_classes, l2, init)
        return _score(classifier, features[valid], dataset.y[valid])[1], classifier

    def layer_features(layer: int) -> np.ndarray:
        return transform(standardize(x[:, layer], train), train)

    layers = range(x.shape[1])
    layer = (
        min(layers, key=lambda i: fit(layer_features(i), LAYER_SEARCH_L2, None)[0])
        if len(layers) > 1
        else 0
    )
    features, classifier = layer_features(layer), None
    fits = list[tuple[float, float, LogisticRegression]]()
    for l2 in L2_PENALTIES:  # Each fit starts from the previous one, which saves time.
        nats, classifier = fit(features, l2, classifier)
        fits.append((nats, l2, classifier))
    _, l2, classifier = min(fits, key=lambda item: item[:2])
    return LinearProbeResult(*_score(classifier, features[test], dataset.y[test]), layer, l2)


def _score(
    classifier: LogisticRegression, x: Float[np.ndarray, "N D"], y: Int[np.ndarray, " N"]
) -> tuple[float, float]:
    """Returns accuracy and mean nats."""
    log_probs = classifier.log_probs(x)
    nats = -np.mean(log_probs[np.arange(len(y)), y])
    return float(np.mean(log_probs.argmax(axis=1) == y)), float(nats)
