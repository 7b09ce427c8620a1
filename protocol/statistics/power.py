"""The smallest claimable difference and the power of a comparison, computed before any run.

Sigma comes from a noise floor: runs of one candidate at the scale of the claim that differ only in
their seed. Sigma is an estimate itself; a careful plan takes `NoiseFloor.upper_bound`.
"""

import bisect
import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from errors import ConfigError, DataError

MIN_NOISE_FLOOR_RUNS = 8
N_QUANTILES = 100  # Quantiles of each sample variance in `power`.
MAX_RUNS = 1000  # Limit of the search in `runs_needed`.


class NoiseFloor(NamedTuple):
    """The standard deviation of a metric over runs that differ only in their seed."""

    sigma: float  # Standard deviation over runs, in the unit of the metric.
    n_runs: int
    source: str = ""  # File in which the runs are recorded.
    # Training FLOPs of one of the runs, the scale at which sigma was measured; 0: unknown.
    training_flops: float = 0.0

    def upper_bound(self, level: float = 0.8) -> float:
        """Returns the one-sided upper confidence bound of sigma."""
        df = self.n_runs - 1
        return self.sigma * math.sqrt(df / special.chdtri(df, level))


def estimate_noise_floor(
    values: tuple[float, ...], source: str = "", training_flops: float = 0.0
) -> NoiseFloor:
    """Estimates the noise floor from the scores of runs that differ only in their seed.

    Raises:
        DataError: if there are too few runs, or their values are not finite or do not differ.
    """
    if len(values) < MIN_NOISE_FLOOR_RUNS:
        raise DataError(f"a noise floor of {len(values)} runs; give {MIN_NOISE_FLOOR_RUNS} or more")
    sigma = float(np.std(values, ddof=1))
    if not math.isfinite(sigma) or sigma <= 1e-13 * max(map(abs, values)):
        raise DataError(f"a noise floor of {sigma:g}; give finite values of runs that differ")
    return NoiseFloor(sigma, len(values), source, training_flops)


def critical_difference(
    sigma: float, n_runs: int, n_comparisons: int = 1, alpha: float = 0.05
) -> float:
    """Returns the smallest claimable difference, t(1 - alpha / 2m, 2n - 2) sigma sqrt(2 / n).

    It is that of equal spreads that are known to be equal. `detectable_difference` is larger,
    because the board does not assume this.
    """
    _check_inputs(sigma, n_comparisons)
    if n_runs < 2:
        return math.inf
    t = special.stdtrit(2 * (n_runs - 1), 1 - alpha / (2 * n_comparisons))
    return float(t * sigma * math.sqrt(2 / n_runs))


def power(
    effect: float,
    sigma: float,
    n_runs: int,
    n_comparisons: int = 1,
    alpha: float = 0.05,
    *,
    other_sigma: float | None = None,
) -> float:
    """Returns the probability that a true difference is claimed (Welch, Bonferroni).

    The two sample variances are independent of the difference and of each other. They determine
    the standard error and the degrees of freedom of `Difference.p`; the result is a mean over
    quantiles of both.

    Args:
        effect: the true difference of the means.
        sigma: the standard deviation of the runs of one candidate.
        n_runs: runs of each candidate.
        n_comparisons: comparisons of the study.
        alpha: the level of the study.
        other_sigma: the standard deviation of the other candidate; None: the same.
    """
    other_sigma = sigma if other_sigma is None else other_sigma
    _check_inputs(min(sigma, other_sigma), n_comparisons)
    if n_runs < 2:
        return 0.0
    df = n_runs - 1
    quantiles = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    ratio = special.gammaincinv(df / 2, quantiles) * 2 / df  # Sample variance over the true one.
    u = ratio[:, None] * sigma**2 / n_runs
    v = ratio[None, :] * other_sigma**2 / n_runs
    share = u / (u + v)
    welch_df = df / (share**2 + (1 - share) ** 2)
    critical = special.stdtrit(df + df * (welch_df / df - 1) ** 2, 1 - alpha / (2 * n_comparisons))
    scale = math.hypot(sigma, other_sigma) / math.sqrt(n_runs)
    center, bound = abs(effect) / scale, critical * np.sqrt(u + v) / scale
    above, below = special.ndtr(center - bound), special.ndtr(-center - bound)
    return float((above + below).mean())


def detectable_difference(
    sigma: float,
    other_sigma: float,
    n_runs: int,
    n_comparisons: int = 1,
    alpha: float = 0.05,
    *,
    target_power: float = 0.5,
) -> float:
    """Returns the smallest true difference that is claimed with the target power.

    It uses the degrees of freedom of the board's own claims, which are fewer than those of equal
    variances. inf if a candidate has a single run.
    """
    _check_inputs(min(sigma, other_sigma), n_comparisons)
    if n_runs < 2:
        return math.inf
    scale = max(sigma, other_sigma)

    def missing_power(effect: float) -> float:
        reached = power(effect, sigma, n_runs, n_comparisons, alpha, other_sigma=other_sigma)
        return reached - target_power

    high = scale
    while missing_power(high) < 0:
        high *= 2
    return float(optimize.brentq(missing_power, 0.0, high, xtol=1e-6 * scale))


def detectable_difference_of_minima(
    sigma: float, n_runs: int, n_comparisons: int = 1, alpha: float = 0.05, *, n_sizes: int
) -> float:
    """Returns the smallest difference of isoFLOP minima that at least half of studies claim.

    Each parabola (`isoflop.minima_difference`) is fitted through `n_runs` runs at each of `n_sizes`
    sizes, evenly spaced in log N around the minimum. At its minimum, the variance of a parabola is
    3 (3 k^2 - 7) / (4 k (k^2 - 4)) of that of the mean of one size, by least squares over k sizes.
    Its degrees of freedom are k - 3, however many runs a size has: the difference is that of two
    means of k - 2 runs each. What is particular to a size, and the misfit of the curve to a
    parabola, add to it.
    """
    _check_inputs(sigma, n_comparisons)
    k = n_sizes
    if k < 4:
        return math.inf
    share = 3 * (3 * k**2 - 7) / (4 * k * (k**2 - 4)) / n_runs
    equivalent = sigma * math.sqrt(share * (k - 2))
    return detectable_difference(equivalent, equivalent, k - 2, n_comparisons, alpha)


def runs_needed(
    effect: float,
    sigma: float,
    n_comparisons: int = 1,
    *,
    target_power: float = 0.8,
    alpha: float = 0.05,
) -> int:
    """Returns the runs of each candidate, 3 or more, that reach the target power.

    Raises:
        ConfigError: if more than `MAX_RUNS` runs are needed.
    """

    def is_enough(runs: int) -> bool:
        return power(effect, sigma, runs, n_comparisons, alpha) >= target_power

    if not is_enough(MAX_RUNS):
        smallest = 2 * critical_difference(sigma, MAX_RUNS, n_comparisons, alpha)
        raise ConfigError(
            f"a difference of {effect:g} at sigma {sigma:g} needs more than {MAX_RUNS} runs; "
            f"choose a difference of {smallest:.2g} or more"
        )
    return 3 + bisect.bisect_left(range(3, MAX_RUNS + 1), True, key=is_enough)


def _check_inputs(sigma: float, n_comparisons: int) -> None:
    if not sigma > 0 or n_comparisons < 1:
        raise ConfigError(
            f"sigma is {sigma} and comparisons {n_comparisons}, must be above 0; "
            "measure sigma with a noise floor"
        )
