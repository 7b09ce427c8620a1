"""Capability probes as evaluation tasks of a run.

A task trains the run's architecture from scratch on a probe, at a fixed budget. Neither the trained
parameters nor the objective of the run play a part: the scores describe the architecture with its
width and depth. `mqar/accuracy@128` is the accuracy in rows of 128 tokens, whatever the length of
the training rows.
"""

from collections.abc import Iterator
from typing import ClassVar

from eval.capability import PROBES
from eval.capability.learning import Budget, run_probe
from eval.task import EvalContext, Score

# Small enough for a tiny model on two CPU cores, and the same for all architectures.
BUDGETS: dict[str, Budget] = {
    "mqar": Budget(steps=800, batch_size=32, train_length=64, test_lengths=(64,)),
    "induction": Budget(steps=600, batch_size=32, train_length=64, test_lengths=(64, 128, 256)),
    "needle": Budget(steps=600, batch_size=32, train_length=64, test_lengths=(64, 128, 256)),
    "copying": Budget(steps=600, batch_size=32, train_length=48, test_lengths=(48, 96)),
    "selective_copying": Budget(steps=600, batch_size=32, train_length=64, test_lengths=(64, 128)),
    "parity": Budget(steps=600, batch_size=32, train_length=40, test_lengths=(40, 80, 160, 256)),
    "modular": Budget(steps=600, batch_size=32, train_length=39, test_lengths=(39, 79, 159, 255)),
}


class CapabilityTask:
    """Trains the run's architecture on one probe and evaluates it."""

    version: ClassVar[int] = 1

    def __init__(self, name: str, splits: tuple[str, ...] = (), budget: Budget | None = None):
        """Ignores the splits, since the rows are generated; `budget` replaces that of BUDGETS."""
        self.name, self.budget = name, budget or BUDGETS[name]

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields accuracy, answer nats and chance at each length, the learning rate and FLOPs."""
        name, probe, budget = self.name, PROBES[self.name], self.budget
        result = run_probe(ctx.settings.model, probe, budget)
        for run in result.runs:
            for x in run:
                length = x.seq_len
                yield Score(f"{name}/accuracy@{length}", x.accuracy, x.n_questions)
                yield Score(f"{name}/answer_nats@{length}", x.nats, x.n_questions)
        for length in sorted({*budget.test_lengths}):
            yield Score(f"{name}/chance@{length}", probe.chance_accuracy(length))
        yield Score(f"{name}/learning_rate", result.learning_rate)
        yield Score(f"{name}/flops", result.flops)
