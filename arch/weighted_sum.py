"""Sums with their weights, so that a mean is exact however a batch was split.

The total of `sum` over microbatches, devices and hosts, divided by the total of `weight`, is the
mean over the whole batch. The coefficients of loss terms stay in the configs: they are not data.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


def divide_by_weight(
    total: Float[Array, "..."], weight: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns total / weight, or the total, which is 0, where the weight is 0."""
    return total / jnp.where(weight > 0, weight, 1)


class WeightedSum(NamedTuple):
    """A weighted sum whose mean is of interest, either one number or one per layer."""

    sum: Float[Array, "*layers"]
    weight: Float[Array, "*layers"]

    @property
    def mean(self) -> Float[Array, "*layers"]:
        """The mean is `sum / weight`, and 0 where nothing has a weight."""
        return divide_by_weight(self.sum, self.weight)


class ProductOfMeans(NamedTuple):
    """A number of entries times the sum over them of the product of two means over tokens.

    It multiplies, so it does not add up over microbatches, but its fields do. `counts` have no
    gradient: with those of the whole batch in each microbatch, `sum` adds up, and its gradient too.
    """

    counts: Float[Array, "*layers E"]
    count_weight: Float[Array, "*layers"]  # The number of tokens of `counts`.
    values: Float[Array, "*layers E"]
    weight: Float[Array, "*layers"]  # The number of tokens of `values`.

    @property
    def sum(self) -> Float[Array, "*layers"]:
        """The product of the means, times `weight`."""
        shares = divide_by_weight(self.counts, self.count_weight[..., None])
        product = shares * divide_by_weight(self.values, self.weight[..., None])
        return self.counts.shape[-1] * jnp.sum(product, axis=-1) * self.weight


# A channel's loss terms and metrics, by name.
AuxMetrics = dict[str, WeightedSum | ProductOfMeans]
