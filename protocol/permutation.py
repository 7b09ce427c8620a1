"""Exact permutation tests, printed only where their smallest reachable p can pass.

With few runs even the most extreme arrangement is not rare: sign flips of 3 pairs reach .25, of 5
pairs .0625, of 8 pairs .0078. Such a test cannot reject, and saying that it did not tells nothing.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from errors import DataError

MOST = 2**20  # arrangements, above which nobody should enumerate


def reachable_flips(pairs: int) -> float:
    """The smallest p of `sign_flips`."""
    return min(1.0, 2.0 ** (1 - pairs))


def reachable_labels(m: int, n: int) -> float:
    """The smallest p of `relabelled`."""
    return min(1.0, (1 + (m == n)) / math.comb(m + n, m))


def sign_flips(
    differences: Sequence[float], comparisons: int = 1, alpha: float = 0.05
) -> float | None:
    """Two-sided p of pairs of runs (same data seed, batch, length, test documents), or None.

    None where `comparisons` tests at `alpha` could not reject whatever the runs say.
    """
    x = np.asarray(differences, float)
    if reachable_flips(x.size) * comparisons > alpha:
        return None
    _limit(2**x.size)
    signs = np.array(list(itertools.product((1, -1), repeat=x.size)))
    return _share(np.abs(signs @ x), abs(x.sum()))


def relabelled(
    a: Sequence[float], b: Sequence[float], comparisons: int = 1, alpha: float = 0.05
) -> float | None:
    """Two-sided p of unpaired runs under every exchange of their labels, or None as above."""
    m, n = len(a), len(b)
    if reachable_labels(m, n) * comparisons > alpha:
        return None
    _limit(math.comb(m + n, m))
    x = np.asarray([*a, *b], float)
    chosen = np.array(list(itertools.combinations(range(m + n), m)))
    sums = x[chosen].sum(-1)
    means = np.abs(sums / m - (x.sum() - sums) / n)
    return _share(means, means[0])


def _share(all_of: np.ndarray, observed: float) -> float:
    """Arrangements at least as extreme; those that differ by rounding are as extreme."""
    return float((all_of >= observed * (1 - 1e-12)).mean())


def _limit(arrangements: int) -> None:
    if arrangements > MOST:
        raise DataError(f"{arrangements} arrangements are above {MOST}; the t test serves here")
