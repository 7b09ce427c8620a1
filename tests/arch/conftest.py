"""Settings of the tests of architectures."""

import pytest

from ops.recurrent import lstm


@pytest.fixture(scope="module", autouse=True)
def short_loop_bodies():
    """Makes programs smaller: a loop with fewer tokens in an iteration computes the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lstm, "UNROLL", 2)
        yield
