"""Estimates how long a plan takes: training, evaluation, and start with compilation.

Where runs of a cell have finished in the folder, their own times count. Else the estimate follows
from the FLOPs and from the matrix multiplication speed of the machine.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from protocol.records.plan_file import hash_json, without_settings
from protocol.records.run_record import list_result_files
from protocol.records.safe_read import parse_jsonl, parse_object, read_file
from protocol.records.series import read_step_joules
from protocol.study.cells import CellKey
from protocol.study.declaration import PlannedRun
from training.optimizer import INPUT_SETTINGS

MATRIX_SIZE = {"cpu": 1024}  # Size of the multiplied matrices by platform; 8192 elsewhere.
REPEATS = 5
# Assumed training speed over that of large matrix products, where no step was measured.
ASSUMED_EFFICIENCY = 0.25
# Assumed seconds until the first step of a program that no run has compiled. Runs of one cell share
# their program (`training/program.py`).
ASSUMED_START_SECONDS = 15.0


class CellSeconds(NamedTuple):
    """The times of the runs of a cell, as their folders have them."""

    step: float  # Median of the steps.
    start: float = 0.0  # From the start to the first step, with compilation; mean of the runs.
    evaluation: float = 0.0  # Of the evaluation at the end; mean of the runs that have ended.


class PlanTime(NamedTuple):
    """The hours that a plan takes."""

    training: float
    evaluation: float
    start: float
    is_measured: bool  # Whether all cells were measured.

    @property
    def total(self) -> float:
        """All hours."""
        return self.training + self.evaluation + self.start


def read_cell_seconds(runs: Sequence[PlannedRun], folder: Path) -> dict[CellKey, CellSeconds]:
    """Returns the times of each cell that has logged steps, from its runs in `folder`."""
    steps, starts, evaluations = (defaultdict[CellKey, list[float]](list) for _ in range(3))
    for run in runs:
        path = folder / run.name
        logged = _logged_step_seconds(path)
        if not logged:
            continue
        steps[run.cell_key] += logged
        starts[run.cell_key].append(_start_seconds(path))
        if seconds := _eval_seconds(path, run.steps):
            evaluations[run.cell_key].append(seconds)
    return {
        key: CellSeconds(
            statistics.median(times),
            statistics.fmean(starts[key]),
            statistics.fmean(evaluations[key] or [0.0]),
        )
        for key, times in steps.items()
    }


def read_train_seconds(run_folder: Path, steps: int) -> float:
    """Returns the seconds of all steps of a run, by its median step; 0 without a log."""
    return steps * statistics.median(_logged_step_seconds(run_folder) or [0.0])


def read_train_joules(run_folder: Path, steps: int) -> float:
    """Returns the joules of all steps of a run, measured or estimated; 0 if it logs none."""
    rows = parse_jsonl(read_file(run_folder, "metrics.jsonl") or b"", f"{run_folder.name}/log")
    joules = [value for row in rows if (value := read_step_joules(row)) is not None]
    return steps * statistics.median(joules or [0.0])


def estimate_time(
    runs: Sequence[PlannedRun],
    cell_seconds: Mapping[CellKey, CellSeconds],
    matmul_flops: float | None = None,
    eval_shares: Mapping[CellKey, float] | None = None,
) -> PlanTime | None:
    """Returns the hours that runs take; None if they cannot be estimated.

    Args:
        runs: the runs of the plan.
        cell_seconds: what was measured of each cell.
        matmul_flops: FLOP/s of large matrix products. Where a cell was not measured, all are
            assumed to train at the share `ASSUMED_EFFICIENCY` of it.
        eval_shares: FLOPs of the evaluation over those of training, by cell (`eval.split_part`).
    """
    if all(run.cell_key in cell_seconds for run in runs):
        measured = [(run, cell_seconds[run.cell_key]) for run in runs]
        training = sum(run.steps * seconds.step for run, seconds in measured)
        evaluation = sum(seconds.evaluation for _, seconds in measured)
        start = sum(seconds.start for _, seconds in measured)
        return PlanTime(training / 3600, evaluation / 3600, start / 3600, True)
    if not matmul_flops:
        return None
    seconds_per_flop = 1 / (ASSUMED_EFFICIENCY * matmul_flops)
    shares = eval_shares or {}
    training = sum(run.training_flops for run in runs) * seconds_per_flop
    evaluation = seconds_per_flop * sum(
        run.training_flops * shares.get(run.cell_key, 0.0) for run in runs
    )
    start = ASSUMED_START_SECONDS * len({*map(_program_key, runs)})
    return PlanTime(training / 3600, evaluation / 3600, start / 3600, False)


def _program_key(run: PlannedRun) -> tuple[CellKey, str]:
    """Returns what runs share that share a compiled program: all but the inputs of a step."""
    inputs = tuple(f"optimizer.{name}" for name in INPUT_SETTINGS)
    return run.cell_key, hash_json(without_settings(run.settings, ("seed", *inputs)))


def _logged_step_seconds(run_folder: Path) -> list[float]:
    data = read_file(run_folder, "metrics.jsonl") or b""
    rows = parse_jsonl(data, f"{run_folder.name}/metrics.jsonl")
    logged = [row.nonnegative("step_seconds") for row in rows]
    return [seconds for seconds in logged if seconds]


def _start_seconds(run_folder: Path) -> float:
    """Returns the seconds from the start of a run to its first step; 0 if it was resumed."""
    data = read_file(run_folder, "metrics.jsonl") or b""
    rows = parse_jsonl(data, f"{run_folder.name}/metrics.jsonl")
    first = next(row for row in rows if row.nonnegative("step_seconds"))
    steps = (first.count("step") or 0) * (first.nonnegative("step_seconds") or 0.0)
    return max((first.nonnegative("seconds") or 0.0) - steps, 0.0)


def _eval_seconds(run_folder: Path, step: int) -> float:
    """Returns the seconds of all evaluation tasks at a step; 0 if there are no results."""
    folder = run_folder / "eval" / str(step)
    results = [
        parse_object(read_file(run_folder, "eval", str(step), name) or b"{}", name)
        for name in list_result_files(folder)
    ]
    return sum(result.nonnegative("seconds") or 0.0 for result in results)


def measure_matmul_flops(dtype: str) -> float:
    """Measures the FLOP/s of a large matrix product on all local devices."""
    platform, n = jax.default_backend(), MATRIX_SIZE.get(jax.default_backend(), 8192)
    x = jnp.ones((n, n), dtype)
    multiply = jax.jit(jnp.matmul).lower(x, x).compile()
    durations = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        durations.append(time.perf_counter() - start)
    # The devices of a CPU share its cores.
    n_devices = 1 if platform == "cpu" else jax.device_count()
    return 2 * n**3 / min(durations) * n_devices
