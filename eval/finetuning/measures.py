"""Measures of predictions: accuracy, F1, F1 of spans, correlations and errors."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import special, stats

from eval.finetuning.datasets import FinetuneDataset

UNREAD = -1  # Prediction of a word that is not in the row of its text; it is wrong.
MAIN_MEASURES = {"classes": "accuracy", "regression": "spearman", "tokens": "accuracy"}
Measures = dict[str, float]


def measure(
    dataset: FinetuneDataset, outputs: Sequence[np.ndarray], targets: Sequence[np.ndarray]
) -> Measures:
    """Returns the measures of a part of a data set.

    Args:
        dataset: the data set.
        outputs: for each example its scores [K], its number [1], or the scores [W K] of its words,
            which are NaN for a word that is not in the row.
        targets: the targets of the examples.
    """
    if dataset.problem == "regression":
        return regression_measures(np.ravel(outputs), np.array(targets, float))
    scores = np.concatenate([np.atleast_2d(x) for x in outputs])
    classes = np.concatenate([np.atleast_1d(t) for t in targets])
    is_read = ~np.isnan(scores).any(axis=1)
    predicted = np.where(is_read, np.argmax(np.where(is_read[:, None], scores, 0), 1), UNREAD)
    out = {"accuracy": float(np.mean(predicted == classes))}
    if is_read.any():
        log_probs = special.log_softmax(scores[is_read], axis=1)
        out["nats"] = float(-np.mean(log_probs[np.arange(len(log_probs)), classes[is_read]]))
    if len(dataset.classes) == 2:
        out["f1"] = f1(predicted == 1, classes == 1)
    else:
        # scikit-learn's definition: over the classes of the targets and of the predictions.
        present = np.union1d(classes, predicted[is_read])
        out["macro_f1"] = float(np.mean([f1(predicted == k, classes == k) for k in present]))
    if dataset.problem == "tokens" and is_bio(dataset.classes):
        sizes = np.cumsum([len(t) for t in targets])[:-1]
        out["span_f1"] = span_f1(
            *(
                [[_name(dataset.classes, k) for k in row] for row in np.split(ids, sizes)]
                for ids in (predicted, classes)
            )
        )
    return out


def regression_measures(predicted: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> Measures:
    """Returns correlations and the root of the mean squared error; a constant correlates with 0."""
    is_constant = not len(y) or np.ptp(predicted) == 0 or np.ptp(y) == 0
    return {
        "pearson": 0.0 if is_constant else float(stats.pearsonr(predicted, y).statistic),
        "spearman": 0.0 if is_constant else float(stats.spearmanr(predicted, y).statistic),
        "rmse": float(np.sqrt(np.mean((predicted - y) ** 2))),
    }


def f1(predicted: Bool[np.ndarray, " N"], actual: Bool[np.ndarray, " N"]) -> float:
    """Returns the harmonic mean of precision and recall; 0 if nothing is right."""
    n_right = np.sum(predicted & actual)
    return float(2 * n_right / max(np.sum(predicted) + np.sum(actual), 1))


def is_bio(classes: Sequence[str]) -> bool:
    """Returns whether labels mark spans: O, B-KIND for the first word, I-KIND for those after."""
    return "O" in classes and all(name == "O" or name[:2] in ("B-", "I-") for name in classes)


def span_f1(predicted: Sequence[Sequence[str]], actual: Sequence[Sequence[str]]) -> float:
    """Returns the F1 of exact spans, as CoNLL-2003 counts them (Tjong Kim Sang & De Meulder)."""
    n_right = n_predicted = n_actual = 0
    for guess, truth in zip(predicted, actual, strict=True):
        guessed, true = find_spans(guess), find_spans(truth)
        n_right += len(guessed & true)
        n_predicted, n_actual = n_predicted + len(guessed), n_actual + len(true)
    return 2 * n_right / max(n_predicted + n_actual, 1)


def find_spans(labels: Sequence[str]) -> set[tuple[int, int, str]]:
    """Returns the spans (start, end, kind); I- of another kind than before begins a span, too."""
    spans, start, kind = set(), 0, ""
    for i, label in enumerate([*labels, "O"]):
        begins = label.startswith("B-") or (label.startswith("I-") and label[2:] != kind)
        if kind and (begins or label == "O"):
            spans.add((start, i, kind))
            kind = ""
        if begins:
            start, kind = i, label[2:]
    return spans


def _name(classes: Sequence[str], index: int) -> str:
    return "O" if index == UNREAD else classes[index]
