"""The `none` channel: a block that consists of a mixer alone, as Mamba's (arXiv:2312.00752)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.part_cost import CostContext, PartCost
from arch.sequence import ALL_VIEWS, SequenceInfo, View
from arch.weighted_sum import AuxMetrics


class NoChannel(nnx.Module):
    """A channel (see `arch/part.py`) that adds nothing; its block has no norm for it either."""

    hint = "use another channel"  # The end of the message that refuses a view.

    def __init__(self, D: int, cfg: None, *, key: Array, scale: float = 1.0):
        pass

    def __call__(
        self, x: Float[Array, "B T D"], seq: SequenceInfo, *, key: Array | None = None
    ) -> tuple[Float[Array, "B T D"], AuxMetrics]:
        """Returns zeros and no metrics."""
        return jnp.zeros_like(x), {}

    @staticmethod
    def supported_views(cfg: None) -> dict[View, str]:
        """Returns all views."""
        return ALL_VIEWS

    @staticmethod
    def aux_losses(cfg: None) -> dict[str, float]:
        """Returns no loss terms."""
        return {}

    @staticmethod
    def tp_dims(D: int, cfg: None) -> dict[str, int]:
        """Returns no dimensions: there are no weights."""
        return {}

    @staticmethod
    def cost(D: int, cfg: None, context: CostContext) -> PartCost:
        """Returns a cost of zero."""
        return PartCost(0, 0, {})
