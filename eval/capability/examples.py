"""What a capability probe is: rows that ask questions, made by a seed alone."""

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

PAD = 0  # no token; ids of all probes begin at 1


class Examples(NamedTuple):
    """Rows; the model answers after it has read the token at a place of weight 1."""

    tokens: Int[np.ndarray, "B T"]
    targets: Int[np.ndarray, "B T"]  # PAD where nothing is asked
    weights: Float[np.ndarray, "B T"]  # 0 or 1


class Capability(Protocol):
    """All are frozen dataclasses."""

    @property
    def vocab(self) -> int:
        """Ids, PAD included."""

    def examples(self, rng: np.random.Generator, count: int, length: int) -> Examples:
        """Rows of `length` tokens that are judged."""

    def lessons(self, rng: np.random.Generator, count: int, length: int) -> Examples:
        """Rows of at most `length` tokens, padded to it, that are learned from."""

    def questions(self, length: int) -> int:
        """How many a row asks at most."""

    def chance(self, length: int) -> float:
        """Accuracy of one who knows how rows are made, but has not read them."""


def asked(tokens: Int[np.ndarray, "B T"], targets: Int[np.ndarray, "B T"]) -> Examples:
    """Examples that ask wherever there is a target."""
    weights = (targets != PAD).astype(np.float32)
    return Examples(tokens.astype(np.int32), targets.astype(np.int32), weights)
