"""Noise of evaluation: how much of the difference of two runs hangs on the test documents.

Pairing by document shrinks this noise and no other: it says whether *these two runs* differ on text
like this, never whether their architectures do. That takes runs (`protocol/verdict.py`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from errors import DataError
from protocol.statistics import Interval


class EvaluationNoise(NamedTuple):
    difference: float  # of the totals per weight, as bits per byte: a minus b
    error: float  # of choosing documents
    documents: int

    def interval(self, level: float = 0.95) -> Interval:
        half = float(special.stdtrit(self.documents - 1, (1 + level) / 2)) * self.error
        return Interval(self.difference - half, self.difference + half)


def paired(a: Sequence[float], b: Sequence[float], weights: Sequence[float]) -> EvaluationNoise:
    """Of totals by document (bits) of two runs, and the documents' weights (bytes).

    The difference is a ratio of sums, whose error is that of its linear form.
    """
    x, y, w = (np.asarray(values, float) for values in (a, b, weights))
    n = x.size
    if not n == y.size == w.size or n < 2:
        raise DataError(
            f"{n}, {y.size} and {w.size} documents; give two runs on the same 2 or more"
        )
    if not (w > 0).all() or not np.isfinite(x + y).all():
        raise DataError("documents need weights above 0 and finite totals; leave others out")
    ratio = (x - y).sum() / w.sum()
    rest = x - y - ratio * w
    error = np.sqrt(n / (n - 1) * (rest**2).sum()) / w.sum()
    return EvaluationNoise(float(ratio), float(error), n)
