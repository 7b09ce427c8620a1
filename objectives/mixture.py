"""Mixtures: several objectives at once, each with its own rows (as in UL2 or T5's mixtures).

The loss is the sum of coefficient * loss. Each part reads its own stream of rows, of which a step
takes `train.batch_size`. Its arrays, metrics and term weights have the prefix `name/`. The parts
share the model and nothing else.
"""

import dataclasses
from typing import ClassVar, NamedTuple, TypeVar

import jax
from jaxtyping import Array, PyTree

from arch import ModelConfig
from arch.layers.dropout import maybe_split_key
from errors import ConfigError
from objectives.token_sets import TokenizerLike
from objectives.types import LossTerm, Metrics, Objective, RowFn, RowSpec, Trainable
from settings.types import config

RowArray = TypeVar("RowArray")  # An array of a batch, or its shape.


@config
class MixtureConfig:
    """Objectives of a mixture; each objective keeps its own section of settings."""

    # Names of the objectives and their coefficients in the loss.
    parts: tuple[tuple[str, float], ...] = (("causal_lm", 1.0), ("contrastive", 0.1))

    def check(self) -> None:
        """Checks names and coefficients.

        Raises:
            ConfigError: if objectives are missing or repeated, or a coefficient is not positive.
        """
        names = [name for name, _ in self.parts]
        if len(set(names)) < max(len(names), 1) or "mixture" in names:
            raise ConfigError(
                f"mixture.parts names {names}; must be different objectives, as "
                "(('causal_lm', 1.0), ('contrastive', 0.1))"
            )
        for name, coefficient in self.parts:
            if coefficient <= 0:
                raise ConfigError(
                    f"mixture.parts gives {name} the coefficient {coefficient}, must be above 0; "
                    "leave it out"
                )


class MixturePart(NamedTuple):
    """A part of a mixture; an objective that is not in a mixture has no name and coefficient 1."""

    name: str
    objective: Objective
    coefficient: float = 1.0

    def label(self, name: str) -> str:
        """Returns `name` with the prefix of the part."""
        return f"{self.name}/{name}" if self.name else name

    def select_batch(self, batch: dict[str, RowArray]) -> dict[str, RowArray]:
        """Returns the arrays of a batch that belong to the part, without the prefix."""
        if not self.name:
            return batch
        prefix = f"{self.name}/"
        return {n.removeprefix(prefix): x for n, x in batch.items() if n.startswith(prefix)}

    def select_trainable(self, trainable: Trainable) -> Trainable:
        """Returns the model with the head of the part."""
        return Trainable(trainable.model, trainable.head[self.name]) if self.name else trainable


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture is an objective that combines the losses of its parts."""

    parts: tuple[MixturePart, ...]

    sums_over_rows: ClassVar[bool] = False
    memory_bank: ClassVar[None] = None  # Each part has its own.

    def row_spec(self, model: ModelConfig, seq_len: int) -> RowSpec:
        """Returns the spec of the first part; the other parts have their own specs."""
        return self.parts[0].objective.row_spec(model, seq_len)

    def for_eval(self) -> "Mixture":
        """Returns the mixture with each part as it is evaluated."""
        return Mixture(tuple(m._replace(objective=m.objective.for_eval()) for m in self.parts))

    def make_row_fn(self, model: ModelConfig, seq_len: int, tokenizer: TokenizerLike) -> RowFn:
        """Refuses, since the rows of a mixture are those of its parts.

        Raises:
            TypeError: always.
        """
        raise TypeError("a mixture has no rows of its own; make the rows of its parts")

    def make_head(self, model: ModelConfig, key: Array) -> dict[str, PyTree | None]:
        """Returns the head of each part by name."""
        keys = jax.random.split(key, len(self.parts))
        pairs = zip(self.parts, keys, strict=True)
        return {m.name: m.objective.make_head(model, k) for m, k in pairs}

    def term_weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the term weights of all parts, with prefixes."""
        return {
            m.label(name): weight
            for m in self.parts
            for name, weight in m.objective.term_weights(m.select_batch(batch)).items()
        }

    def forward(
        self, trainable: Trainable, microbatch: dict[str, Array], key: Array | None
    ) -> dict[str, PyTree]:
        """Runs the forward pass of each part on its arrays."""
        keys = maybe_split_key(key, len(self.parts))
        return {
            m.name: m.objective.forward(
                m.select_trainable(trainable), m.select_batch(microbatch), k
            )
            for m, k in zip(self.parts, keys, strict=True)
        }

    def reduce(
        self, trainable: Trainable, out: dict[str, PyTree], batch: dict[str, Array]
    ) -> tuple[dict[str, LossTerm], Metrics]:
        """Returns the loss terms of all parts, scaled by their coefficients, and their metrics."""
        terms, metrics = dict[str, LossTerm](), Metrics()
        for m in self.parts:
            part_terms, part_metrics = m.objective.reduce(
                m.select_trainable(trainable), out[m.name], m.select_batch(batch)
            )
            for name, term in part_terms.items():
                scaled = term._replace(coefficient=m.coefficient * term.coefficient)
                terms[m.label(name)] = scaled
            metrics |= {m.label(name): amount for name, amount in part_metrics.items()}
        return terms, metrics


def mixture_parts(objective: Objective) -> tuple[MixturePart, ...]:
    """Returns the parts of a mixture, or the objective itself as the only part."""
    return objective.parts if isinstance(objective, Mixture) else (MixturePart("", objective),)
