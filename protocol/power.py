"""What a comparison is able to show, said before anything runs.

Sigma comes from a noise floor: runs of one candidate at the scale of the claim, which differ in
their seed alone. It is an estimate too; `NoiseFloor.upper` is what a careful plan takes.
"""

import bisect
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from errors import ConfigError, DataError

FLOOR_RUNS = 8
MOST_RUNS = 1000


class NoiseFloor(NamedTuple):
    sigma: float  # standard deviation over runs, in the unit of the metric
    runs: int
    source: str = ""  # where the runs are recorded
    flops: float = 0.0  # of the training of one of them: the scale that it speaks for; 0: unknown

    def upper(self, level: float = 0.8) -> float:
        """What sigma is below with this confidence."""
        df = self.runs - 1
        return self.sigma * math.sqrt(df / special.chdtri(df, level))


def noise_floor(values: tuple[float, ...], source: str = "", flops: float = 0.0) -> NoiseFloor:
    """From runs that differ in their seed alone; sigma is measured, never borrowed."""
    if len(values) < FLOOR_RUNS:
        raise DataError(f"a noise floor of {len(values)} runs; give {FLOOR_RUNS} or more")
    sigma = float(np.std(values, ddof=1))
    if not math.isfinite(sigma) or sigma <= 1e-13 * max(map(abs, values)):
        raise DataError(f"a noise floor of {sigma:g}; give finite values of runs that differ")
    return NoiseFloor(sigma, len(values), source, flops)


def smallest_claim(sigma: float, runs: int, comparisons: int = 1, alpha: float = 0.05) -> float:
    """The smallest claimable difference, t(1 - alpha / 2m, 2n - 2) sigma sqrt(2 / n).

    A true difference of this size is found every other time; `runs_needed` asks for more.
    """
    _checked(sigma, comparisons)
    if runs < 2:
        return math.inf
    t = special.stdtrit(2 * (runs - 1), 1 - alpha / (2 * comparisons))
    return float(t * sigma * math.sqrt(2 / runs))


def smallest_claim_of_minima(
    sigma: float, runs: int, comparisons: int = 1, alpha: float = 0.05, *, sizes: int
) -> float:
    """The same between losses at the minima of two isoFLOP parabolas (`frontier.apart`), each
    through `runs` runs of each of `sizes` sizes, evenly apart in log N around the minimum.

    There the variance of a parabola is 3 (3 k^2 - 7) / (4 k (k^2 - 4)) of that of one run, by least
    squares over k sizes. What a curve departs from its parabola comes on top.
    """
    _checked(sigma, comparisons)
    k, df = sizes, 2 * (sizes * runs - 3)
    if k < 3 or df < 1:
        return math.inf
    t = special.stdtrit(df, 1 - alpha / (2 * comparisons))
    share = 3 * (3 * k**2 - 7) / (4 * k * (k**2 - 4)) / runs
    return float(t * sigma * math.sqrt(2 * share))


def power(
    effect: float, sigma: float, runs: int, comparisons: int = 1, alpha: float = 0.05
) -> float:
    """Probability that a true difference is claimed, at equal spreads, by Bonferroni.

    The variance and the share of one sample in it are independent, and the share alone decides the
    degrees of freedom of `Difference.p`: a mean over quantiles of both.
    """
    _checked(sigma, comparisons)
    if runs < 2:
        return 0.0
    df, centre = runs - 1, abs(effect) / (sigma * math.sqrt(2 / runs))
    at = (np.arange(200) + 0.5) / 200
    share = special.betaincinv(df / 2, df / 2, at)
    error = np.sqrt(special.gammaincinv(df, at) / df)[:, None]  # over its expectation
    welch = df / (share**2 + (1 - share) ** 2)
    critical = special.stdtrit(df + df * (welch / df - 1) ** 2, 1 - alpha / (2 * comparisons))
    found = special.ndtr(centre - critical * error) + special.ndtr(-centre - critical * error)
    return float(found.mean())


def runs_needed(
    effect: float,
    sigma: float,
    comparisons: int = 1,
    *,
    target: float = 0.8,
    alpha: float = 0.05,
) -> int:
    """Runs of each candidate, 3 or more, that find a true difference with probability `target`."""

    def enough(runs: int) -> bool:
        return power(effect, sigma, runs, comparisons, alpha) >= target

    if not enough(MOST_RUNS):
        least = 2 * smallest_claim(sigma, MOST_RUNS, comparisons, alpha)
        raise ConfigError(
            f"a difference of {effect:g} at sigma {sigma:g} takes more than {MOST_RUNS} runs; "
            f"ask for {least:.2g} or more"
        )
    return 3 + bisect.bisect_left(range(3, MOST_RUNS + 1), True, key=enough)


def _checked(sigma: float, comparisons: int) -> None:
    if not sigma > 0 or comparisons < 1:
        raise ConfigError(
            f"sigma is {sigma} and comparisons {comparisons}, must be above 0; "
            "sigma comes from a noise floor"
        )
