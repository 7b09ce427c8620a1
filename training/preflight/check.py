"""Compile the step for a machine that need not be present, and find settings that fit it.

On TPUs the compiler refuses a program that is too large. On other platforms its figures are
compared with the memory of the chip. For a step that does not fit, changes of settings are filtered
by the memory estimate, scaled by its error for the original settings, and compiled before one is
suggested.
"""

import math
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax

from errors import ConfigError, DeviceMemoryError
from formatting import format_bytes
from settings.changes import with_changes
from training import hardware
from training import mesh as meshes
from training.preflight import memory_estimate
from training.preflight.hlo_collectives import CollectiveTraffic, parse_collectives
from training.preflight.topology import Chip, CompileTarget
from training.program import TrainProgram, make_program
from training.settings import Settings

MAX_COMPILES = 3  # number of suggestions that are compiled
MAX_MEMORY_FRACTION = 0.97  # a suggestion's scaled estimate must leave 3 % of the memory free
# Of XLA's compiler of TPUs: "Used 35.1G of 15.7G hbm", or "the total memory required for HLO
# temporaries (15.90G) exceeds available HBM (15.75G)".
OOM_PATTERN = re.compile(r"(?:[Uu]sed |\()([\d.]+)([KMGT])(?: of |\) exceeds available HBM)")
BYTE_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

SettingChange = tuple[str, str | int]  # dotted key and value


class CompileResult(NamedTuple):
    """The result of compiling a step: its memory, its communication, and whether it fits."""

    seconds: float  # time that the compilation took
    memory: dict[str, int]  # bytes per device by component; {} if the compilation failed
    total_bytes: int  # bytes per device
    traffic: dict[str, CollectiveTraffic]  # by kind of collective
    fits: bool


def try_compile(program: TrainProgram, chip: Chip) -> CompileResult:
    """Compiles the step for the devices of the program's mesh and compares it with the chip.

    An out-of-memory error of the compiler is a result that does not fit.

    Raises:
        JaxRuntimeError: if the compilation fails for another reason.
    """
    start = time.perf_counter()
    try:
        step = program.compile_step()
    except jax.errors.JaxRuntimeError as error:
        if not hardware.is_out_of_memory(error):
            raise
        match = OOM_PATTERN.search(str(error))
        needed = int(float(match[1]) * BYTE_UNITS[match[2]]) if match else 0
        return CompileResult(time.perf_counter() - start, {}, needed, {}, False)
    seconds = time.perf_counter() - start
    memory = memory_estimate.compiled_memory(step)
    needed = sum(memory.values())
    fits = chip.memory_bytes is None or chip.platform == "tpu" or needed <= chip.memory_bytes
    return CompileResult(seconds, memory, needed, parse_collectives(step.as_text() or ""), fits)


def check_fits(
    result: CompileResult, program: TrainProgram, target: CompileTarget, estimated_bytes: int
) -> None:
    """Raises an error that suggests settings which fit, if the compiled step does not.

    `estimated_bytes` is the total of the memory estimate of `program` per device.

    Raises:
        DeviceMemoryError: if the step does not fit the target.
    """
    if result.fits:
        return
    changes = _suggest_fix(program, target, scale=result.total_bytes / estimated_bytes)
    flags = " ".join(f"--config.{key}={value}" for key, value in changes)
    raise DeviceMemoryError(
        f"the step does not fit {target.name}: it needs {format_bytes(result.total_bytes)} of "
        f"{format_bytes(target.chip.memory_bytes or 0)} per device; "
        + (f"this fits: {flags}" if changes else "no mesh, remat or batch was found that does")
    )


def _suggest_fix(
    program: TrainProgram, target: CompileTarget, *, scale: float
) -> tuple[SettingChange, ...]:
    """The mildest changes that fit by the scaled estimate and by the compiler; () if none do."""
    limit, num_compiles = target.chip.memory_bytes or math.inf, 0
    for changes in setting_changes(program.settings, program.mesh.shape["replica"]):
        try:
            settings = with_changes(program.settings, dict(changes))
            candidate = make_program(settings, meshes.make_mesh(settings.mesh, target.devices))
        except ConfigError:
            continue
        estimated_bytes = sum(memory_estimate.estimate(candidate).values())
        if scale * estimated_bytes > MAX_MEMORY_FRACTION * limit:
            continue
        if try_compile(candidate, target.chip).fits:
            return changes
        num_compiles += 1
        if num_compiles == MAX_COMPILES:
            break
    return ()


def setting_changes(settings: Settings, replicas: int) -> Iterator[tuple[SettingChange, ...]]:
    """Yields changes that may save memory, mildest first: single, combined, then smaller batches.

    FSDP in place of replicas, remat and gradient accumulation do not change the result of a run.
    Tensor parallelism costs speed. Only a smaller batch makes it another run, so it comes last.
    """
    train, policies = settings.train, ("none", "dots", "full", "offload")
    fsdp: tuple[SettingChange, ...] = (("mesh.replica", 1), ("mesh.data", -1))
    sharding: list[tuple[SettingChange, ...]] = [fsdp] if replicas > 1 else []
    remat: list[tuple[SettingChange, ...]] = [
        (("model.remat", policy),)
        for policy in ("dots", "full")
        if policies.index(policy) > policies.index(settings.model.remat)
    ]
    microbatches = [train.grad_accum_steps * 2**i for i in range(1, 11)]
    accumulation: list[tuple[SettingChange, ...]] = [
        (("train.grad_accum_steps", n),) for n in microbatches if train.batch_size % n == 0
    ]
    tensor: list[tuple[SettingChange, ...]] = [(*fsdp, ("mesh.model", 2**i)) for i in range(1, 5)]
    yield from sharding
    yield from remat
    yield from accumulation
    strongest_remat = remat[-1] if remat else ()
    combined = (fsdp if sharding else ()) + strongest_remat
    yield combined
    yield from (combined + change for change in accumulation)
    yield from (combined + change for change in tensor)
    yield from (strongest_remat + t + a for t in tensor for a in accumulation)
    for i in range(1, 11):
        if batch_size := train.batch_size >> i:
            yield (*combined, ("train.grad_accum_steps", 1), ("train.batch_size", batch_size))
