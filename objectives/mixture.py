"""Several objectives at once, each with rows of its own, weighted (as in UL2 or T5's mixtures).

The loss is the sum of coefficient * loss. Each part reads its own stream of rows, `train.batch` of
them; its arrays, metrics and weights stand under `name/`. Parts share the model and nothing else.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
from jaxtyping import Array

from arch import ModelConfig
from arch.dropout import split
from errors import ConfigError
from objectives.learner import Example, Learner, Metrics, Rows, Term
from objectives.vocabulary import Tokenizer
from schema import config


@config
class Mixture:
    """Which objectives, by name, and their coefficients; each keeps its own section of settings."""

    parts: tuple[tuple[str, float], ...] = (("causal_lm", 1.0), ("contrastive", 0.1))

    def check(self) -> None:
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


class Member(NamedTuple):
    """An objective and its place in a mixture; alone it has no name and all the weight."""

    name: str
    objective: Any
    coefficient: float = 1.0

    def label(self, name: str) -> str:
        return f"{self.name}/{name}" if self.name else name

    def batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Its own arrays of a batch."""
        if not self.name:
            return batch
        own = f"{self.name}/"
        return {n.removeprefix(own): x for n, x in batch.items() if n.startswith(own)}

    def learner(self, learner: Learner) -> Learner:
        """The model with its own head."""
        return Learner(learner.model, learner.head[self.name]) if self.name else learner


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A mixture with its objectives at hand; an objective itself."""

    members: tuple[Member, ...]

    additive: ClassVar[bool] = False
    bank: ClassVar[None] = None  # its parts have theirs

    def rows(self, model: ModelConfig, length: int) -> Rows:
        """Of the first; each member is asked for its own."""
        return self.members[0].objective.rows(model, length)

    def judged(self) -> "Mixed":
        return Mixed(tuple(m._replace(objective=m.objective.judged()) for m in self.members))

    def host(self, model: ModelConfig, length: int, tokenizer: Tokenizer) -> Example:
        raise TypeError("a mixture has no rows of its own; ask its members for theirs")

    def head(self, model: ModelConfig, key: Array) -> dict[str, Any]:
        keys = jax.random.split(key, len(self.members))
        pairs = zip(self.members, keys, strict=True)
        return {m.name: m.objective.head(model, k) for m, k in pairs}

    def weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        return {
            m.label(name): weight
            for m in self.members
            for name, weight in m.objective.weights(m.batch(batch)).items()
        }

    def encode(
        self, learner: Learner, micro: dict[str, Array], key: Array | None
    ) -> dict[str, Any]:
        keys = split(key, len(self.members))
        return {
            m.name: m.objective.encode(m.learner(learner), m.batch(micro), k)
            for m, k in zip(self.members, keys, strict=True)
        }

    def reduce(
        self, learner: Learner, out: dict[str, Any], batch: dict[str, Array]
    ) -> tuple[dict[str, Term], Metrics]:
        terms, metrics = dict[str, Term](), Metrics()
        for m in self.members:
            own, said = m.objective.reduce(m.learner(learner), out[m.name], m.batch(batch))
            scaled = {
                n: t._replace(coefficient=m.coefficient * t.coefficient) for n, t in own.items()
            }
            terms |= {m.label(name): term for name, term in scaled.items()}
            metrics |= {m.label(name): amount for name, amount in said.items()}
        return terms, metrics


def members(objective: Any) -> tuple[Member, ...]:
    """The parts of a mixture; any other objective is the only part of itself."""
    return objective.members if isinstance(objective, Mixed) else (Member("", objective),)
