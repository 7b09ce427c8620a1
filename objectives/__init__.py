"""What a model learns to do: one file per objective, one signature for all.

On the host, `example` makes one row of a batch from pieces of documents (numpy, a pure function of
the pieces and a generator). On the device, `encode` runs the model on a microbatch and `reduce`
turns what came out into loss terms. The loss is the sum over terms of
coefficient * (global sum / max(global weight, 1)).
"""

from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Array

from arch import ModelConfig
from arch.sequence import View
from objectives.causal_lm import CausalLM
from objectives.learner import Learner, Metrics, Term, auxiliary, tokens_of, totals

Batch = dict[str, Array]


class Objective(Protocol):
    """What the loop asks of an objective. All are frozen dataclasses."""

    view: ClassVar[View]  # how the model reads the batch
    overlap: ClassVar[
        int
    ]  # framed tokens that a piece shares with the next one (see data/packing.py)

    def example(
        self, pieces: list[np.ndarray], length: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]: ...

    def head(self, model: ModelConfig, key: Array) -> Any:
        """The objective's own weights, or None."""

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weight of each of its terms: a function of the batch alone."""

    def encode(self, learner: Learner, micro: Batch, key: Array | None) -> Any: ...

    def reduce(
        self, learner: Learner, out: Any, batch: Batch
    ) -> tuple[dict[str, Term], Metrics]: ...


# To add an objective: write its file, import it, name it here and in training/settings.py.
OBJECTIVES: dict[str, type] = {"causal_lm": CausalLM}

__all__ = [
    "OBJECTIVES",
    "Batch",
    "CausalLM",
    "Learner",
    "Metrics",
    "Objective",
    "Term",
    "auxiliary",
    "tokens_of",
    "totals",
]
