"""Inputs of a time estimate: measured step times, or the matrix multiplication speed."""

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from protocol.records.safe_read import parse_jsonl, read_file
from protocol.study.cells import CellKey
from protocol.study.declaration import PlannedRun

MATRIX_SIZE = {"cpu": 1024}  # Size of the multiplied matrices by platform; 8192 elsewhere.
REPEATS = 5


def read_step_seconds(runs: Sequence[PlannedRun], folder: Path) -> dict[CellKey, float]:
    """Returns the median step time of each cell in seconds, from its runs in `folder`."""
    seconds_by_cell: dict[CellKey, list[float]] = defaultdict(list)
    for run in runs:
        seconds_by_cell[run.cell_key] += _logged_step_seconds(folder / run.name)
    return {key: statistics.median(times) for key, times in seconds_by_cell.items() if times}


def read_train_seconds(run_folder: Path, steps: int) -> float:
    """Returns the seconds of all steps of a run, by its median step; 0 without a log."""
    return steps * statistics.median(_logged_step_seconds(run_folder) or [0.0])


def _logged_step_seconds(run_folder: Path) -> list[float]:
    data = read_file(run_folder, "metrics.jsonl") or b""
    rows = parse_jsonl(data, f"{run_folder.name}/metrics.jsonl")
    logged = [row.nonnegative("step_seconds") for row in rows]
    return [seconds for seconds in logged if seconds]


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
