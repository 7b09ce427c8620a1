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
from protocol.study.plan import PlannedRun

MATRIX_SIZE = {"cpu": 1024}  # Size of the multiplied matrices by platform; 8192 elsewhere.
REPEATS = 5


def read_step_seconds(runs: Sequence[PlannedRun], folder: Path) -> dict[CellKey, float]:
    """Returns the median step time of each cell in seconds, from its runs in `folder`."""
    seconds_by_cell: dict[CellKey, list[float]] = defaultdict(list)
    for run in runs:
        data = read_file(folder / run.name, "metrics.jsonl") or b""
        logged = (
            row.nonnegative("step_seconds")
            for row in parse_jsonl(data, f"{run.name}/metrics.jsonl")
        )
        seconds_by_cell[run.cell_key] += [seconds for seconds in logged if seconds]
    return {key: statistics.median(times) for key, times in seconds_by_cell.items() if times}


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
