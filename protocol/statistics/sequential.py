"""Group-sequential tests: levels for a study that is examined at several numbers of seeds.

Testing at 5 % again after each added seed makes a false claim in far more than 5 % of studies.
A study that declares its looks tests all of them at one lower level (Pocock, Biometrika 64, 1977):
the probability that any look makes a false claim is then the level of the whole study. The level is
computed for normal means with the recursion of Armitage, McPherson & Rowe (JRSS A 132, 1969) and
applied to the p-values of t-tests, as Pocock proposes.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import optimize, special

from errors import ConfigError

# Points and weights of the integral over the running sum at a look, on [-1, 1].
NODES, WEIGHTS = np.polynomial.legendre.leggauss(81)


@cache
def look_level(looks: tuple[int, ...], alpha: float = 0.05, n_comparisons: int = 1) -> float:
    """Returns the level at which each look tests, as a level of Holm-adjusted p-values.

    The first false claim of Holm's procedure needs one p-value below its Bonferroni bound. The
    level is therefore that of one comparison at alpha / n_comparisons, times n_comparisons.

    Args:
        looks: increasing numbers of runs of each candidate.
        alpha: the level of the whole study.
        n_comparisons: comparisons of the whole study.
    """
    if len(looks) < 2:
        return alpha
    share = alpha / n_comparisons

    def excess(bound: float) -> float:
        return _crossing_probability(looks, bound) - share

    low, high = special.ndtri(1 - share / 2), special.ndtri(1 - share / (2.0 * len(looks)))
    bound = optimize.brentq(excess, low - 1e-6, high + 1e-6, xtol=1e-9)
    return float(min(2 * special.ndtr(-bound) * n_comparisons, alpha))


def check_looks(looks: Sequence[int], n_seeds: int) -> None:
    """Refuses looks that are no sequence of seeds.

    Raises:
        ConfigError: if they do not increase from 3 to the number of seeds.
    """
    is_increasing = all(a < b for a, b in zip(looks, looks[1:], strict=False))
    if looks and not (is_increasing and looks[0] >= 3 and looks[-1] == n_seeds):
        raise ConfigError(
            f"looks {tuple(looks)} must be increasing numbers of seeds, the first 3 or more and "
            f"the last all {n_seeds} seeds of the study"
        )


def _crossing_probability(looks: Sequence[int], bound: float) -> float:
    """Returns the probability that |Z| exceeds `bound` at any look, without any effect."""
    edge = bound * math.sqrt(looks[0])
    sums = NODES * edge
    mass = WEIGHTS * edge * _normal_density(sums, looks[0])
    for before, runs in zip(looks, looks[1:], strict=False):
        edge = bound * math.sqrt(runs)
        next_sums = NODES * edge
        density = _normal_density(next_sums[:, None] - sums[None, :], runs - before) @ mass
        sums, mass = next_sums, WEIGHTS * edge * density
    return 1.0 - float(mass.sum())


def _normal_density(x: np.ndarray, variance: float) -> np.ndarray:
    return np.exp(-(x**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
