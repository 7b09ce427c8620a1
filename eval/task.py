"""What a task gets and gives."""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple, Protocol

from jax.sharding import Mesh

from data import Data
from objectives import Learner, Objective
from training.settings import Settings


class Subject(NamedTuple):
    """What is judged: a learner on its mesh, and the run's settings and data."""

    learner: Learner
    mesh: Mesh
    settings: Settings
    objective: Objective
    data: Data


class Score(NamedTuple):
    """One result; `weight` is what a mean over several would weigh it by (bytes, examples)."""

    name: str
    value: float | str
    weight: float | None = None


class Task(Protocol):
    """A task is versioned: scores of different versions are never pooled."""

    version: ClassVar[int]
    objective: ClassVar[str]  # that it judges; "": any

    def __call__(self, subject: Subject) -> Iterator[Score]: ...
