"""How far results depend on which trials a search happened to make.

The trials of a search are one sample of its space. Resampling them with replacement, as often as
they are, says which of them another search of the same size would have selected: the best of k
draws is at least the i-th best with probability ((n - i + 1) / n)^k, so that no simulation is
needed. Its mean is the expected best score of Dodge et al. (arXiv:1909.03004, equation 3). Of two
candidates that had the same trials, the draws are the same too.

Halton points are more even than the random ones that resampling assumes, which makes the intervals
a little wide; the selected scores contain the noise of the tuning seeds, as the selection did.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from protocol.records.metrics import Direction
from protocol.statistics.hypothesis_tests import Interval

MIN_SPREAD_TRIALS = 5  # Trials below which their spread says nothing.


class TunedDifference(NamedTuple):
    """An interval of a difference of candidates over seeds, over tunings, and over both."""

    mean: float
    seeds: Interval
    tunings: Interval  # With the seeds as they were.
    total: Interval  # Over seeds and tunings.


def expected_best(
    scores: Sequence[float | None], n_draws: int, better: Direction = "lower"
) -> float | None:
    """Returns the expected best score of `n_draws` random trials; None if every trial diverged.

    Args:
        scores: the score of each trial; None: it diverged, and is worse than all others.
        n_draws: trials of the imagined search.
        better: the better direction of the score.
    """
    costs = _costs(scores, better)
    weights = _joint_weights(costs, np.zeros_like(costs), n_draws, same_trials=False).sum(axis=1)
    is_finite = np.isfinite(np.sort(costs))
    if not is_finite.any():
        return None
    mean = float(np.average(np.sort(costs)[is_finite], weights=weights[is_finite]))
    return mean if better == "lower" else -mean


def tuned_difference(
    mean: float,
    half_width: float,
    scores: tuple[Sequence[float | None], Sequence[float | None]],
    *,
    better: Direction = "lower",
    level: float = 0.95,
    same_trials: bool = True,
) -> TunedDifference | None:
    """Returns what another search would change in a difference, a minus b.

    The shift of the difference by another selection is that of the tuning scores, around its mean
    over selections (basic bootstrap). The interval over both sources takes the root of the sum of
    squares of the two on each side (Zou and Donner, Statistics in Medicine 27, 2008).

    Args:
        mean: the difference of the mean scores of the reported runs.
        half_width: half its interval over seeds, at `level`.
        scores: the tuning scores of a and of b, by trial; None: it diverged.
        better: the better direction of the scores.
        level: level of all intervals.
        same_trials: whether the trials of a and b have the same settings, in the same order.

    Returns:
        The intervals; None if there are too few trials.
    """
    a, b = (_costs(of_candidate, better) for of_candidate in scores)
    if min(np.isfinite(a).sum(), np.isfinite(b).sum()) < MIN_SPREAD_TRIALS:
        return None
    weights = _joint_weights(a, b, len(a), same_trials)
    with np.errstate(invalid="ignore"):
        shifts = np.subtract.outer(np.sort(a), np.sort(b))
    is_finite = np.isfinite(shifts)
    values, weights = shifts[is_finite], weights[is_finite]
    if better == "higher":
        values = -values
    values = values - np.average(values, weights=weights)
    low, high = (_quantile(values, weights, q) for q in ((1 - level) / 2, (1 + level) / 2))
    low, high = min(low, 0.0), max(high, 0.0)
    return TunedDifference(
        mean,
        Interval(mean - half_width, mean + half_width),
        Interval(mean - high, mean - low),
        Interval(mean - math.hypot(half_width, high), mean + math.hypot(half_width, low)),
    )


def _costs(scores: Sequence[float | None], better: Direction) -> Float[np.ndarray, " n"]:
    sign = 1 if better == "lower" else -1
    return np.array([math.inf if score is None else sign * score for score in scores])


def _joint_weights(
    a: Float[np.ndarray, " m"], b: Float[np.ndarray, " n"], n_draws: int, same_trials: bool
) -> Float[np.ndarray, "m n"]:
    """Returns the probabilities that the i-th best of a and the j-th best of b are selected."""
    if same_trials:
        counts = np.zeros((len(a) + 1, len(b) + 1))
        counts[_ranks(a), _ranks(b)] = 1
        # Trials that are at least the i-th best of a and the j-th best of b.
        counts = counts[::-1, ::-1].cumsum(axis=0).cumsum(axis=1)[::-1, ::-1]
        at_least = (counts / len(a)) ** n_draws
    else:
        left, right = (np.arange(len(x), -1, -1) / len(x) for x in (a, b))
        at_least = np.multiply.outer(left**n_draws, right**n_draws)
    return at_least[:-1, :-1] - at_least[1:, :-1] - at_least[:-1, 1:] + at_least[1:, 1:]


def _ranks(costs: Float[np.ndarray, " n"]) -> np.ndarray:
    return np.argsort(np.argsort(costs, kind="stable"), kind="stable")


def _quantile(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], share: float
) -> float:
    """Returns the smallest value below or at which at least this share of the weights lies."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order]) / weights.sum()
    index = int(np.searchsorted(cumulative, share - 1e-12))
    return float(values[order][min(index, len(order) - 1)])
