"""Signal to noise of a score: how far it separates candidates, over how much its runs scatter.

The definition is that of arXiv:2508.13144. The signal is the relative dispersion, the largest
difference between the means of two candidates over the mean of all candidates. The noise is the
relative standard deviation of one candidate, pooled over candidates: over runs that differ only in
their seed (`signal_to_noise`), and over the last evaluations of one run (`trend_residuals`).

The dispersion of candidates that do not differ is not 0. The expected ratio of such candidates
and the p-value of the F test of equal means are therefore given beside the ratio.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from errors import DataError

N_QUADRATURE = 2001  # Points of the integral of the expected range.
INTEGRATION_LIMIT = 8.0  # Standard deviations at which it ends.

Array = np.ndarray


class SignalToNoise(NamedTuple):
    """The dispersion of candidates and the scatter of their runs, in the unit of the score."""

    dispersion: float  # The largest mean less the smallest.
    sigma: float  # Standard deviation over seeds, pooled over the candidates.
    mean: float  # Of the candidates' means.
    df: int  # Degrees of freedom of sigma.
    n_candidates: int
    null_ratio: float  # Expected ratio of candidates that do not differ.
    p: float  # Of equal means, by the F test of a one-way analysis of variance.

    @property
    def ratio(self) -> float:
        """The signal over the noise, in both of which the mean cancels."""
        return self.dispersion / self.sigma

    @property
    def signal(self) -> float:
        """The relative dispersion; NaN of a mean of 0."""
        return self.dispersion / abs(self.mean) if self.mean else math.nan

    @property
    def noise(self) -> float:
        """The relative standard deviation; NaN of a mean of 0."""
        return self.sigma / abs(self.mean) if self.mean else math.nan


def signal_to_noise(candidates: Sequence[Sequence[float]]) -> SignalToNoise:
    """Returns the signal and the noise of a score over seeds (arXiv:2508.13144).

    Args:
        candidates: the scores of the runs of each candidate.

    Raises:
        DataError: if there is no pair of candidates, no candidate has two runs, or runs of a
            candidate do not scatter.
    """
    groups = [np.asarray(values, float) for values in candidates if len(values)]
    df = sum(x.size - 1 for x in groups)
    if len(groups) < 2 or not df:
        runs = max((x.size for x in groups), default=0)
        raise DataError(
            f"{len(groups)} candidates of at most {runs} runs, a signal needs 2 candidates and a "
            "noise 2 runs; add candidates or seeds"
        )
    means = np.array([x.mean() for x in groups])
    counts = np.array([x.size for x in groups])
    within = sum(((x - x.mean()) ** 2).sum() for x in groups) / df
    scale = max(float(np.abs(x).max()) for x in groups)
    if within <= (1e-13 * scale) ** 2:
        raise DataError("the runs of each candidate have the same score; there is no noise")
    center = (counts * means).sum() / counts.sum()
    between = (counts * (means - center) ** 2).sum() / (len(groups) - 1)
    # The variance of a mean is that of one run over its number of runs.
    null = expected_range(len(groups)) * math.sqrt((1 / counts).mean()) * _inverse_sigma(df)
    return SignalToNoise(
        dispersion=float(means.max() - means.min()),
        sigma=float(math.sqrt(within)),
        mean=float(means.mean()),
        df=int(df),
        n_candidates=len(groups),
        null_ratio=null,
        p=float(special.fdtrc(len(groups) - 1, df, between / within)),
    )


@functools.cache
def expected_range(count: int) -> float:
    """Returns the expected range of `count` standard normal numbers (Tippett 1925)."""
    x = np.linspace(-INTEGRATION_LIMIT, INTEGRATION_LIMIT, N_QUADRATURE)
    below = special.ndtr(x)
    return float(np.trapezoid(1 - below**count - (1 - below) ** count, x))


def trend_residuals(steps: Float[Array, " n"], scores: Float[Array, " n"]) -> Float[Array, " n"]:
    """Returns the residuals of the last scores of a run about a straight line.

    arXiv:2508.13144 takes the standard deviation of the scores themselves. Where the learning rate
    falls to 0, that would mostly be the progress of training. The residuals have n - 2 degrees of
    freedom.

    Raises:
        DataError: if there are fewer than 3 scores.
    """
    if len(scores) < 3:
        raise DataError(f"{len(scores)} scores of a run, the scatter about a line needs 3 or more")
    x = (steps - steps.mean()) / max(float(np.ptp(steps)), 1.0)
    slope = (x * scores).sum() / max(float((x**2).sum()), 1e-300)
    return scores - scores.mean() - slope * x


def _inverse_sigma(df: int) -> float:
    """Returns the expected inverse of an estimate of sigma 1; infinite at 1 degree of freedom."""
    if df < 2:
        return math.inf
    logs = special.gammaln((df - 1) / 2) - special.gammaln(df / 2)
    return math.sqrt(df / 2) * math.exp(logs)
