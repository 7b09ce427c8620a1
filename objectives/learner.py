"""What is trained, and how its loss adds up."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch import Model
from arch.ledger import Bill
from arch.sequence import View
from arch.terms import Amount, Aux

Metrics = dict[str, Amount]
ENCODER = "encoder/"  # before the names of what an encoder's channels report


# (pieces of documents, positions of text in a row, random numbers) -> arrays of the row by name.
Example = Callable[[list[np.ndarray], int, np.random.Generator], dict[str, np.ndarray]]


# packed: documents after one another; pieces: a stretch of one document; records: texts that
# belong together, as data/records.py reads them.
Reads = Literal["packed", "pieces", "records"]


class Rows(NamedTuple):
    """What a row of a batch is made of, and how a model reads it."""

    text: int  # positions of documents that it takes; of each text, if it has several
    overlap: int  # framed tokens that a piece shares with the next one (see data/packing.py)
    view: View
    source: int = 0  # tokens of the encoder's row, or of the prefix
    tokens: int = 0  # of the row that is scored; 0: as many as of text
    targets: int = 0  # at most so many of these are scored; 0: all
    reads: Reads = "packed"
    texts: int = 1  # of a row, each read alone
    added: int = 0  # texts that a bank adds to these
    in_place: bool = False  # tokens stand or are predicted where they are, so text may be weighed
    logits: bool = True  # whether the model's head is asked for any
    own: Bill | None = None  # what the objective's own weights cost, of a token
    remedy: str = ""  # what else to do where a model cannot take the view

    def positions(self, length: int) -> int:
        """Tokens of a row that a model reads."""
        return (self.tokens or length) * (self.texts + self.added)


class Learner(NamedTuple):
    """The model and the objective's own weights (None if it has none)."""

    model: Model
    head: Any = None


class Term(NamedTuple):
    """One addend of the loss: coefficient * sum / max(weight, 1), over the global batch."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]
    coefficient: float = 1.0


class Represented(NamedTuple):
    """What `encode` gives where terms do not add over rows: vectors, the batch as their first axis,
    and what channels reported, which adds up over microbatches."""

    rows: Any
    aux: Aux


def auxiliary(learner: Learner, aux: Aux, batch: dict[str, Array]) -> tuple[dict, Metrics]:
    """What channels reported, [layers] by name, as loss terms (summed over layers) and metrics.

    A term is the sum over layers of means over tokens: the encoder's over those of the source.
    """
    coefficients = learner.model.config.losses()
    terms, metrics = {}, Metrics()
    for name, amount in aux.items():
        own = name.removeprefix(ENCODER)
        if own in coefficients:
            weight = _tokens_seen(name, batch)
            terms[name] = Term(jnp.sum(amount.sum), weight, coefficients[own])
        else:
            metrics[name] = amount
    return terms, metrics


def tokens_of(batch: dict[str, Array]) -> Float[Array, ""]:
    """How many tokens of a batch are not padding: the weight of what a model adds to the loss."""
    return jnp.sum(batch["segments"] != 0, dtype=jnp.float32)


def totals(objective: Any, batch: dict[str, Array], names: list[str]) -> dict[str, Array]:
    """The global weight of each term; a term that the objective does not name weighs by tokens."""
    known = objective.weights(batch)
    return {name: known[name] if name in known else _tokens_seen(name, batch) for name in names}


def _tokens_seen(name: str, batch: dict[str, Array]) -> Float[Array, ""]:
    if name.startswith(ENCODER):
        return jnp.sum(batch["source_segments"] != 0, dtype=jnp.float32)
    return tokens_of(batch)
