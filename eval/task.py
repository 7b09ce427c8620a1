"""The interface of evaluation tasks: what a task reads, what it yields, and its table entry."""

from collections.abc import Iterator
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol

from jax.sharding import Mesh

from data.open_stores import Data
from objectives import Objective, Trainable
from settings.lazy import import_object
from training.memory_bank import MemoryBanks
from training.settings import Settings


class EvalContext(NamedTuple):
    """Holds what a task evaluates: parameters on their mesh, and the run's settings and data."""

    trainable: Trainable
    mesh: Mesh
    settings: Settings
    objective: Objective
    data: Data
    banks: MemoryBanks = MappingProxyType({})  # Those of the run, by the names of its objectives.


class Score(NamedTuple):
    """Holds one result of a task."""

    name: str
    value: float | str
    weight: float | None = None  # Weight in a mean over several scores, such as bytes or examples.


ScoreValues = dict[str, float | str]  # values by the name of the score


class Task(Protocol):
    """Evaluates a context and yields scores; results of different versions are never pooled."""

    version: ClassVar[int]

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of the context."""


class TaskEntry(NamedTuple):
    """An entry of the table of tasks; the class of a task is imported when a task is made."""

    objective: str  # Objective that the task evaluates; "" accepts every objective.
    path: str  # Class of the task, "module:NAME".
    arguments: tuple[str, ...] = ()  # Arguments of the class, before `splits`.
    is_logged: bool = True  # Whether a run logs and prints the scores that it ends with.
    is_limited: bool = True  # Whether eval.limit selects the part of a split that it reads.
    # Section of `eval` that the task reads; with other values it is evaluated again.
    section: str = ""

    def __call__(self, splits: tuple[str, ...] = ("test",)) -> Task:
        """Returns a task that reads these splits of the data."""
        task: Task = import_object(self.path)(*self.arguments, splits=splits)
        return task
