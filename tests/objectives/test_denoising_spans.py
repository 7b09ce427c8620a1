"""The spans that denoising removes: which tokens it can reach."""

import numpy as np

from objectives.denoising import SpanCorruption, _span_lengths


def test_the_first_token_is_never_removed_and_the_last_always():
    rng = np.random.default_rng(0)
    removed = np.zeros((200, 12), bool)
    for row in removed:
        spans = _span_lengths(SpanCorruption(0.5, 2.0, -1), 12, rng)
        kinds = np.tile([False, True], len(spans[0]))
        row[:] = np.repeat(kinds, np.stack(spans, axis=1).reshape(-1))
    shares = removed.mean(axis=0)
    assert shares[0] == 0 and shares[-1] == 1 and (shares[1:-1] > 0).all()
    assert (removed.sum(axis=1) == 6).all()
