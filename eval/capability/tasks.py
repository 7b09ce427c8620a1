"""Capability probes as tasks of a run: its architecture, trained anew on each at a fixed budget.

What the run has learned plays no part, its objective neither: scores are of the architecture, its
width and depth. `mqar/accuracy@128` is of rows of 128 tokens, whatever the length of lessons.
"""

from collections.abc import Iterator
from typing import ClassVar

from eval.capability import PROBES
from eval.capability.learning import Budget, learn
from eval.task import Score, Subject

# Small enough for a tiny model on two CPU cores; the same for all architectures.
BUDGETS: dict[str, Budget] = {
    "mqar": Budget(steps=800, batch=32, length=64, tests=(64,)),
    "induction": Budget(steps=600, batch=32, length=64, tests=(64, 128, 256)),
    "needle": Budget(steps=600, batch=32, length=64, tests=(64, 128, 256)),
    "copying": Budget(steps=600, batch=32, length=48, tests=(48, 96)),
    "selective_copying": Budget(steps=600, batch=32, length=64, tests=(64, 128)),
    "parity": Budget(steps=600, batch=32, length=40, tests=(40, 80, 160, 256)),
    "modular": Budget(steps=600, batch=32, length=39, tests=(39, 79, 159, 255)),
}


def _task(name: str) -> type:
    class Learns:
        version: ClassVar[int] = 1
        objective: ClassVar[str] = ""

        def __init__(self, splits: tuple[str, ...] = (), budget: Budget = BUDGETS[name]):
            self.budget = budget

        def __call__(self, subject: Subject) -> Iterator[Score]:
            probe, budget = PROBES[name], self.budget
            found = learn(subject.settings.model, probe, budget)
            for run in found.runs:
                for one in run:
                    at = one.length
                    yield Score(f"{name}/accuracy@{at}", one.accuracy, one.questions)
                    yield Score(f"{name}/answer_nats@{at}", one.nats, one.questions)
            for length in sorted({*budget.tests}):
                yield Score(f"{name}/chance@{length}", probe.chance(length))
            yield Score(f"{name}/learning_rate", found.rate)

    return Learns


TASKS = {name: _task(name) for name in PROBES}
