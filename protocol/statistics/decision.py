"""Decision accuracy: does the order of candidates at one size predict that at the next?

It is the share of pairs of candidates whose order at a small size is that at a larger one
(arXiv:2504.11393). A pair decides at a size if its difference is outside the interval of
no difference, at a level that all pairs at all sizes share (Bonferroni). The true share then lies,
in at least 95 % of studies, between the share of pairs that decide the same at both sizes and one
less the share of those that decide the opposite.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from protocol.statistics.hypothesis_tests import Difference, Interval

ALPHA = 0.05

Array = np.ndarray


class SizeScores(NamedTuple):
    """The scores of the same candidates at one size, in the same order."""

    means: Float[Array, " k"]
    standard_errors: Float[Array, " k"]  # Not finite: one run.
    df: Float[Array, " k"]  # Degrees of freedom of the errors; 0: one run.


class DecisionAccuracy(NamedTuple):
    """How many pairs of candidates have the order at one size that they have at another."""

    n_pairs: int
    n_same: int  # Pairs of which the means have the same order.
    n_decided_same: int  # Pairs that both sizes decide, the same.
    n_decided_opposite: int  # Pairs that both sizes decide, the opposite.

    @property
    def accuracy(self) -> float:
        """The share of pairs with the same order."""
        return self.n_same / self.n_pairs

    @property
    def n_decided(self) -> int:
        """The number of pairs that both sizes decide."""
        return self.n_decided_same + self.n_decided_opposite

    @property
    def interval(self) -> Interval:
        """The interval of the share of pairs whose true order is the same, at least 95 %."""
        low, high = self.n_decided_same, self.n_pairs - self.n_decided_opposite
        return Interval(low / self.n_pairs, high / self.n_pairs)


def size_scores(candidates: Sequence[Sequence[float]]) -> SizeScores:
    """Returns the means over runs with their errors; each candidate needs a run."""
    counts = np.array([len(values) for values in candidates], float)
    means = np.array([np.mean(values) for values in candidates])
    spreads = np.array([np.std(v, ddof=1) if len(v) > 1 else np.inf for v in candidates])
    return SizeScores(means, spreads / np.sqrt(counts), counts - 1)


def decision_accuracies(
    sizes: Sequence[SizeScores], steps: Sequence[tuple[int, int]] = ()
) -> list[DecisionAccuracy]:
    """Returns the decision accuracy of each step, by default from each size to the next.

    Args:
        sizes: two sizes or more, each with the same two candidates or more.
        steps: pairs (index of the predicting size, index of the predicted size).
    """
    order = np.stack([np.sign(_differences(size).mean) for size in sizes])
    n_pairs = order.shape[1]
    level = ALPHA / (n_pairs * len(sizes))
    is_decided = np.stack([_differences(size).p < level for size in sizes])
    accuracies = []
    for a, b in steps or itertools.pairwise(range(len(sizes))):
        is_same, is_sure = order[a] == order[b], is_decided[a] & is_decided[b]
        accuracies.append(
            DecisionAccuracy(
                n_pairs,
                int(is_same.sum()),
                int((is_sure & is_same).sum()),
                int((is_sure & ~is_same).sum()),
            )
        )
    return accuracies


def _differences(scores: SizeScores) -> Difference:
    """Returns the difference of each pair, with the degrees of freedom of `welch`."""
    i, j = np.triu_indices(len(scores.means), 1)
    a, b = scores.standard_errors[i] ** 2, scores.standard_errors[j] ** 2
    m, n = np.maximum(scores.df[i], 1.0), np.maximum(scores.df[j], 1.0)
    is_known = np.isfinite(a + b) & (a + b > 0)
    total = np.where(is_known, a + b, 1.0)
    shares = np.where(is_known, a / total, 0.5)
    df = 1 / (shares**2 / m + (1 - shares) ** 2 / n)
    low, high = np.minimum(m, n), m + n
    claim_df = low + (high - low) * ((df - low) / (high - low)) ** 2
    # An error of 0 claims nothing.
    error = np.where(is_known, np.sqrt(total), 0.0)
    return Difference(scores.means[i] - scores.means[j], error, df, claim_df)
