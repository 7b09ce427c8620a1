"""What is trained, and how its loss adds up."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from arch import Model
from arch.terms import Amount

Metrics = dict[str, Amount]


class Learner(NamedTuple):
    """The model and the objective's own weights (None if it has none)."""

    model: Model
    head: Any = None


class Term(NamedTuple):
    """One addend of the loss: coefficient * sum / max(weight, 1), over the global batch."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]
    coefficient: float = 1.0


def tokens_of(batch: dict[str, Array]) -> Float[Array, ""]:
    """How many tokens of a batch are not padding: the weight of what a model adds to the loss."""
    return jnp.sum(batch["segments"] != 0, dtype=jnp.float32)


def totals(objective: Any, batch: dict[str, Array], names: list[str]) -> dict[str, Array]:
    """The global weight of each term; a term that the objective does not name weighs by tokens."""
    known = objective.weights(batch)
    return {name: known[name] if name in known else tokens_of(batch) for name in names}
