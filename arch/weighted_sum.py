"""Sums with their weights, so that a mean is exact however a batch was split.

The total of `sum` over microbatches, devices and hosts, divided by the total of `weight`, is the
mean over the whole batch. The coefficients of loss terms stay in the configs: they are not data.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class WeightedSum(NamedTuple):
    """A weighted sum whose mean is of interest, either one number or one per layer."""

    sum: Float[Array, "*layers"]
    weight: Float[Array, "*layers"]

    @property
    def mean(self) -> Float[Array, "*layers"]:
        """The mean is `sum / weight`, where a weight below 1 counts as 1."""
        return self.sum / jnp.maximum(self.weight, 1)


AuxMetrics = dict[str, WeightedSum]  # A channel's loss terms and metrics, by name.
