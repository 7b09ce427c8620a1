"""Inference over training runs: the run is the unit of replication, intervals are Student's.

Everything here takes arrays [.. runs] and is exact or calibrated by simulation in the tests. Welch
(Biometrika 34, 1947) decides, with two measured amendments:

- His degrees of freedom are an estimate. With 3 runs and one candidate that scatters 7 times as
  much as the other, a lone comparison claims falsely in 5.9 % of studies. Claims therefore use
  `claim_df`, which squares the estimate's relative excess over its minimum: at most 5.1 %.
- Brown-Forsythe cannot object at 3 runs at all and hardly at 5: pooling wherever it is silent at
  .05 makes false claims in up to 14 % of families, with intervals that cover 77 %. Sigma is
  pooled from `POOL_RUNS` runs of each candidate and `POOL_ABOVE` on, which the tests find sound.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from errors import DataError

POOL_RUNS = 8  # of each candidate; with fewer, Brown-Forsythe is blind
POOL_ABOVE = 0.5  # its p-value: .25 still lets a noisy baseline make 7 % of families false

Array = np.ndarray
Method = Literal["Welch", "pooled"]


class Interval(NamedTuple):
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of a minus mean of b, or an array of such, and how sure it is."""

    mean: Float[Array, "..."]
    error: Float[Array, "..."]  # standard error; 0: runs do not differ, and nothing is claimed
    df: Float[Array, "..."]
    claim_df: Float[Array, "..."]
    method: Method = "Welch"

    @property
    def p(self) -> Float[Array, "..."]:
        """Two-sided, of no difference."""
        return 2 * _above(np.abs(self.mean), self.error, self.claim_df)

    def half(self, level: float = 0.95) -> Float[Array, "..."]:
        """Half the width of the interval."""
        return special.stdtrit(self.df, (1 + level) / 2) * self.error

    def tie(self, margin: float) -> Float[Array, "..."]:
        """P-value of a difference of `margin` or more: the larger of two one-sided tests
        (Schuirmann 1987)."""
        return _above(margin - np.abs(self.mean), self.error, self.claim_df)

    def claimable(self, comparisons: int = 1, alpha: float = 0.05) -> Float[Array, "..."]:
        """The smallest mean that would be claimed, were the spread the same."""
        return special.stdtrit(self.claim_df, 1 - alpha / (2 * comparisons)) * self.error


def welch(a: Float[Array, "*studies m"], b: Float[Array, "*studies n"]) -> Difference:
    """Each with its own variance."""
    m, n = _enough(a), _enough(b)
    u, v = _variance(a) / m, _variance(b) / n
    error = np.sqrt(u + v)
    shares = np.divide(u, u + v, out=np.full_like(u, 0.5), where=u + v > 0)
    df = 1 / (shares**2 / (m - 1) + (1 - shares) ** 2 / (n - 1))
    low, high = min(m, n) - 1, m + n - 2
    claim = low + (high - low) * ((df - low) / (high - low)) ** 2
    return Difference(a.mean(-1) - b.mean(-1), error, df, claim)


def pooled(
    a: Float[Array, "*studies m"],
    b: Float[Array, "*studies n"],
    sigma: Float[Array, "*studies"],
    df: float,
) -> Difference:
    """With a `sigma` of runs that more candidates share (`pooled_sigma`)."""
    error = sigma * math.sqrt(1 / a.shape[-1] + 1 / b.shape[-1])
    freedom = np.full_like(np.asarray(error), df)
    return Difference(a.mean(-1) - b.mean(-1), np.asarray(error), freedom, freedom, "pooled")


def pooled_sigma(
    groups: Sequence[Float[Array, "*studies _"]],
) -> tuple[Float[Array, "*studies"], int]:
    """The standard deviation that candidates have in common, and its degrees of freedom."""
    df = sum(_enough(x) - 1 for x in groups)
    squares = sum(_variance(x) * (x.shape[-1] - 1) for x in groups)
    return np.sqrt(squares / df), df


def brown_forsythe(groups: Sequence[Float[Array, "*studies _"]]) -> Float[Array, "*studies"]:
    """P-value of equal spreads: an analysis of variance of distances to the median (JASA 69, 1974).

    1 where no run differs from its candidate's median.
    """
    sizes = [_enough(x) for x in groups]
    away = [np.abs(x - np.median(x, -1, keepdims=True)) for x in groups]
    k, runs = len(groups), sum(sizes)
    total = sum(x.sum(-1) for x in away) / runs
    between = sum(n * (x.mean(-1) - total) ** 2 for n, x in zip(sizes, away, strict=True))
    within = sum(_variance(x) * (n - 1) for n, x in zip(sizes, away, strict=True))
    explained, rest = np.asarray(between / (k - 1)), np.asarray(within / (runs - k))
    ratio = np.divide(explained, rest, out=np.full_like(rest, np.inf), where=rest > 0)
    return np.where(explained > 0, special.fdtrc(k - 1, runs - k, ratio), 1.0)


def may_pool(groups: Sequence[Float[Array, "*studies _"]]) -> np.ndarray:
    """Whether one sigma may stand for all; see the top of this file."""
    fewest = min(x.shape[-1] for x in groups)
    if fewest < POOL_RUNS or len(groups) < 2:
        return np.zeros(groups[0].shape[:-1], bool)
    return brown_forsythe(groups) > POOL_ABOVE


def holm(p: Float[Array, "*studies m"]) -> Float[Array, "*studies m"]:
    """P-values adjusted for m comparisons (Scand. J. Statist. 6, 1979): any false one <= alpha."""
    m, order = p.shape[-1], np.argsort(p, -1, kind="stable")
    steps = np.take_along_axis(p, order, -1) * np.arange(m, 0, -1)
    steps = np.minimum(np.maximum.accumulate(steps, -1), 1.0)
    adjusted = np.empty_like(steps)
    np.put_along_axis(adjusted, order, steps, -1)
    return adjusted


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Of the mean over runs; None for one run or equal ones, whose scatter nobody knows."""
    x = np.asarray(values, float)
    if x.size < 2 or not _variance(x):
        return None
    half = special.stdtrit(x.size - 1, (1 + level) / 2) * math.sqrt(_variance(x) / x.size)
    return Interval(float(x.mean() - half), float(x.mean() + half))


def rate_interval(count: int, runs: int, level: float = 0.95) -> Interval:
    """Of a rate, as that of diverged runs (Clopper & Pearson, Biometrika 26, 1934)."""
    if not 0 <= count <= runs or not runs:
        raise DataError(f"{count} of {runs} runs is no rate; give 0 .. runs, and 1 run or more")
    tail = (1 - level) / 2
    low = special.betaincinv(count, runs - count + 1, tail) if count else 0.0
    high = special.betaincinv(count + 1, runs - count, 1 - tail) if count < runs else 1.0
    return Interval(float(low), float(high))


def _above(distance: Array, error: Array, df: Array) -> Array:
    """P(t > distance / error); 1/2 or more where nothing is known of the error."""
    safe = np.where(error > 0, error, 1.0)
    return np.where(error > 0, special.stdtr(df, -distance / safe), 0.5)


def _variance(x: Float[Array, "*studies n"]) -> Float[Array, "*studies"]:
    """Unbiased; what rounding leaves of equal numbers is 0."""
    found = x.var(-1, ddof=1)
    return np.where(found <= (1e-13 * np.abs(x).max(-1)) ** 2, 0.0, found)


def _enough(x: Array) -> int:
    if x.shape[-1] < 2:
        raise DataError(f"a spread needs 2 runs of a candidate, got {x.shape[-1]}; add seeds")
    return x.shape[-1]
