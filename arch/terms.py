"""What is added up: sums and weights, so that means are exact however a batch was split.

A sum over microbatches, devices and hosts of `sum`, over one of `weight`, is the mean over the
whole batch. Coefficients of loss terms stay with the configs: they are not data.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Amount(NamedTuple):
    """A quantity of which the mean matters, or one of each layer."""

    sum: Float[Array, "*layers"]
    weight: Float[Array, "*layers"]

    @property
    def mean(self) -> Float[Array, "*layers"]:
        return self.sum / jnp.maximum(self.weight, 1)


Aux = dict[str, Amount]  # what a channel reports: loss terms and metrics
