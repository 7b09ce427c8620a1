"""The `none` channel: a block that is a mixer and nothing else, as Mamba's (arXiv:2312.00752)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.ledger import Bill, Place
from arch.sequence import EVERYWHERE, Sequence


class Nothing(nnx.Module):
    """Adds nothing; a block leaves out its norm too."""

    views = staticmethod(lambda cfg: EVERYWHERE)
    remedy = "use another channel"  # where a view is refused

    def __init__(self, D: int, cfg: None, *, key: Array, scale: float = 1.0):
        pass

    def __call__(
        self, x: Float[Array, "B T D"], seq: Sequence, *, key: Array | None = None
    ) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
        return jnp.zeros_like(x), {}

    @staticmethod
    def losses(cfg: None) -> dict[str, float]:
        return {}

    @staticmethod
    def cuts(D: int, cfg: None) -> dict[str, int]:
        return {}

    @staticmethod
    def cost(D: int, cfg: None, place: Place) -> Bill:
        return Bill(0, 0, {})
