"""Trains for a few steps in this process, without a run folder, to measure many models."""

from collections.abc import Iterator
from typing import NamedTuple

import jax

from data.loader import read_ahead
from data.open_stores import Data
from errors import ConfigError
from objectives import Batch, Metrics
from training.loop import part_batches, to_device
from training.program import TrainProgram
from training.state import TrainState


class ShortStep(NamedTuple):
    """What is known after a step; the state is valid until the next one."""

    step: int  # Steps done.
    state: TrainState
    batch: Batch  # The batch of the step; before the first one, that of the first one.
    metrics: Metrics | None  # None before the first step.


def iter_steps(program: TrainProgram, data: Data) -> Iterator[ShortStep]:
    """Yields the state before the first step and after each step, on the batches of a run.

    A step whose loss or gradient is not finite changes nothing, and the metrics show it.

    Raises:
        ConfigError: if the objective is a mixture.
    """
    settings = program.settings
    if settings.objective == "mixture":
        raise ConfigError("objective 'mixture' has no short runs; choose one of its objectives")
    batches = part_batches(settings, settings.mixture_parts()[0], data, program.mesh)
    train_step, steps = program.compile_train_step(), settings.train.steps
    with jax.set_mesh(program.mesh), read_ahead(batches, 0, steps, data_hash=None) as ahead:
        state = program.init()
        yield ShortStep(0, state, to_device(program, 0, batches[0]), None)
        for index, arrays, _ in ahead:
            batch = to_device(program, index, arrays)
            state, metrics = train_step(state, batch)
            yield ShortStep(index + 1, state, batch, metrics)
