"""What a model learns to do: one file per objective, one signature for all.

On the host, `example` makes one row of a batch from pieces of documents (numpy, a pure function of
the pieces and a generator). On the device, `encode` runs the model on a microbatch and `reduce`
turns what came out into loss terms. The loss is the sum over terms of
coefficient * (global sum / max(global weight, 1)). Where terms do not add over rows (`additive` is
False), `encode` gives what is `Represented` and `reduce` sees the whole batch.
"""

from typing import Any, ClassVar, Protocol

from jaxtyping import Array

from arch import ModelConfig
from objectives.causal_lm import CausalLM
from objectives.contrastive import Contrastive
from objectives.denoising import Denoising
from objectives.learner import (
    Example,
    Learner,
    Metrics,
    Represented,
    Rows,
    Term,
    auxiliary,
    tokens_of,
    totals,
)
from objectives.masked_lm import MaskedLM
from objectives.mixture import Member, Mixed, Mixture, members
from objectives.vocabulary import Blank, Tokenizer

Batch = dict[str, Array]


class Bank(Protocol):
    """What an objective keeps on the device between steps, in the state of the run: rows of
    training text and what it makes of them (a memory bank, Wu et al., arXiv:1805.01978)."""

    @property
    def rows(self) -> int:
        """How many rows of training text it is made of."""

    def held(self, width: int, rows: Batch) -> Any:
        """What is kept of rows as `host` makes them, for a model of this width; a pytree."""

    def consulted(
        self, learner: Learner, held: Any, batch: Batch, step: Array, parts: int
    ) -> tuple[Any, Batch]:
        """What is kept after looking at step `step`, and the batch with what it adds; without a
        gradient, and in no more memory than one of `parts` microbatches takes."""

    def reads(self, steps: int, batch: int, length: int) -> int:
        """Tokens that the model reads for it in a run: what the budget pays a third for."""


class Objective(Protocol):
    """What the loop asks of an objective. All are frozen dataclasses."""

    additive: ClassVar[bool]  # its terms are sums over rows

    @property
    def bank(self) -> Bank | None:
        """What it keeps between steps, if anything."""

    def rows(self, model: ModelConfig, length: int) -> Rows:
        """What rows are made of; ConfigError if the model cannot take them."""

    def host(self, model: ModelConfig, length: int, tokenizer: Tokenizer) -> Example:
        """The function that makes a row; no pieces give a row of padding."""

    def judged(self) -> "Objective":
        """Itself as it is evaluated, which does not depend on how it was trained."""

    def head(self, model: ModelConfig, key: Array) -> Any:
        """The objective's own weights, or None."""

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weight of each of its terms: a function of the batch alone."""

    def encode(self, learner: Learner, micro: Batch, key: Array | None) -> Any: ...

    def reduce(
        self, learner: Learner, out: Any, batch: Batch
    ) -> tuple[dict[str, Term], Metrics]: ...


# To add an objective: write its file, import it, name it here and in training/settings.py. Mixtures
# are made of these.
OBJECTIVES: dict[str, type] = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "denoising": Denoising,
    "contrastive": Contrastive,
}

__all__ = [
    "OBJECTIVES",
    "Bank",
    "Batch",
    "Blank",
    "CausalLM",
    "Contrastive",
    "Denoising",
    "Example",
    "Learner",
    "MaskedLM",
    "Member",
    "Metrics",
    "Mixed",
    "Mixture",
    "Objective",
    "Represented",
    "Rows",
    "Term",
    "Tokenizer",
    "auxiliary",
    "members",
    "tokens_of",
    "totals",
]
