"""The interface of capability probes: rows with questions that are a function of a seed alone."""

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

PAD = 0  # Id of padding; the ids of all probes begin at 1.


class ProbeBatch(NamedTuple):
    """Holds rows of tokens; the model answers after each token of weight 1."""

    tokens: Int[np.ndarray, "B T"]
    targets: Int[np.ndarray, "B T"]  # PAD where there is no question.
    weights: Float[np.ndarray, "B T"]  # 0 or 1.


class CapabilityProbe(Protocol):
    """Generates the rows of one synthetic task; all probes are frozen dataclasses."""

    @property
    def vocab_size(self) -> int:
        """The number of ids includes PAD."""

    def make_test_batch(
        self, rng: np.random.Generator, batch_size: int, seq_len: int
    ) -> ProbeBatch:
        """Returns rows of `seq_len` tokens for evaluation."""

    def make_train_batch(
        self, rng: np.random.Generator, batch_size: int, seq_len: int
    ) -> ProbeBatch:
        """Returns rows for training, of at most `seq_len` tokens and padded to this length."""

    def max_questions(self, seq_len: int) -> int:
        """Returns the largest number of questions in a row."""

    def chance_accuracy(self, seq_len: int) -> float:
        """Returns the best accuracy of a predictor that does not read the rows."""


def make_batch(tokens: Int[np.ndarray, "B T"], targets: Int[np.ndarray, "B T"]) -> ProbeBatch:
    """Returns a batch with a question wherever there is a target."""
    weights = (targets != PAD).astype(np.float32)
    return ProbeBatch(tokens.astype(np.int32), targets.astype(np.int32), weights)
