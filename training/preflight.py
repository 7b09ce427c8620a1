"""Compile a step for a machine that need not be here: does it fit, and if not, what does?

On TPUs the compiler refuses what is too large; elsewhere its figures are held against the memory of
the chip. What to try is found by the estimate, scaled by how far off it was here, and
compiled before it is said.
"""

import dataclasses
import math
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax

from errors import ConfigError, DeviceMemoryError
from training import memory, report
from training import mesh as meshes
from training.collectives import Traffic, collectives
from training.program import Program, program
from training.settings import Settings
from training.targets import Chip, Target

TRIES = 3  # compilations of what might fit
ROOM = 0.97  # of the memory: the estimate must leave some
USED = re.compile(r"[Uu]sed ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

Change = tuple[str, str | int]  # a setting and its value


class Outcome(NamedTuple):
    seconds: float
    memory: dict[str, int]  # bytes per device by component; {}: it did not compile
    needed: int  # bytes per device
    traffic: dict[str, Traffic]
    fits: bool


def check(made: Program, where: Target) -> None:
    """Print what compiling `made` gives; DeviceMemoryError, with a way out, if it does not fit."""
    estimate = sum(memory.estimate(made).values())
    outcome = compiled(made, where.chip)
    report.show(report.outcome(outcome, made, where, estimate))
    if outcome.fits:
        return
    most = where.chip.memory or 0
    changes = _remedy(made, where, outcome.needed / estimate)
    way = " ".join(f"--config.{key}={value}" for key, value in changes)
    raise DeviceMemoryError(
        f"the step does not fit {where.name}: {report.gibibytes(outcome.needed)} a device of "
        f"{report.gibibytes(most)}; "
        + (f"this fits: {way}" if changes else "no mesh, remat or batch was found that does")
    )


def compiled(made: Program, chip: Chip) -> Outcome:
    """The step of `made`, compiled for the devices of its mesh."""
    began = time.perf_counter()
    try:
        step = made.compiled()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = USED.search(str(error))
        needed = int(float(found[1]) * UNITS[found[2]]) if found else 0
        return Outcome(time.perf_counter() - began, {}, needed, {}, False)
    seconds = time.perf_counter() - began
    sizes = memory.measured(step)
    needed = sum(sizes.values())
    fits = chip.memory is None or chip.platform == "tpu" or needed <= chip.memory
    return Outcome(seconds, sizes, needed, collectives(step.as_text()), fits)


def _remedy(made: Program, where: Target, scale: float) -> tuple[Change, ...]:
    """The first changes that fit by the scaled estimate and by the compiler; (): none did."""
    most, tried = where.chip.memory or math.inf, 0
    for changes in candidates(made.settings, made.mesh.shape["replica"]):
        try:
            settings = applied(made.settings, changes)
            other = program(settings, meshes.build(settings.mesh, where.devices))
        except ConfigError:
            continue
        if scale * sum(memory.estimate(other).values()) > ROOM * most:
            continue
        if compiled(other, where.chip).fits:
            return changes
        tried += 1
        if tried == TRIES:
            break
    return ()


def candidates(settings: Settings, replicas: int) -> Iterator[tuple[Change, ...]]:
    """What may save memory, mildest first: each alone, then added up, then smaller batches.

    FSDP in place of copies, remat and accumulation leave the numbers as they are; tensor
    parallelism costs speed; only a smaller batch is another run.
    """
    train, sharded = settings.train, (("mesh.replica", 1), ("mesh.data", -1))
    spread: list[tuple[Change, ...]] = [sharded] if replicas > 1 else []
    remat: list[tuple[Change, ...]] = [
        (("model.remat", name),)
        for name in ("dots", "full")
        if ("none", "dots", "full").index(name)
        > ("none", "dots", "full", "offload").index(settings.model.remat)
    ]
    doubled = [train.accumulate * 2**i for i in range(1, 11)]
    parts: list[tuple[Change, ...]] = [
        (("train.accumulate", n),) for n in doubled if train.batch % n == 0
    ]
    tensor: list[tuple[Change, ...]] = [
        (("mesh.replica", 1), ("mesh.data", -1), ("mesh.model", 2**i)) for i in range(1, 5)
    ]
    yield from spread
    yield from remat
    yield from parts
    last = (spread[-1] if spread else ()) + (remat[-1] if remat else ())
    yield last
    yield from (last + part for part in parts)
    yield from (last + cut for cut in tensor)
    yield from (last[2 * bool(spread) :] + cut + part for cut in tensor for part in parts)
    for i in range(1, 11):
        if train.batch >> i:
            yield (*last, ("train.accumulate", 1), ("train.batch", train.batch >> i))


def applied(settings: Settings, changes: tuple[Change, ...]) -> Settings:
    """`settings` with a few values replaced, each named `section.key`."""
    for key, value in changes:
        section, name = key.split(".")
        inner = dataclasses.replace(getattr(settings, section), **{name: value})
        settings = dataclasses.replace(settings, **{section: inner})
    return settings
