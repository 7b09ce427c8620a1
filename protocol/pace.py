"""What a plan's hours come from: steps that were measured, or what this machine multiplies."""

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from protocol.cells import Key
from protocol.plan import Run
from protocol.untrusted import read, rows

SIDE = {"cpu": 1024}  # of the matrices that are multiplied; else 8192
TIMES = 5


def steps(runs: Sequence[Run], folder: Path) -> dict[Key, float]:
    """Seconds of a step of each cell: the median of what its runs in `folder` have logged."""
    found: dict[Key, list[float]] = defaultdict(list)
    for run in runs:
        data = read(folder / run.name, "metrics.jsonl") or b""
        logged = (row.amount("step_seconds") for row in rows(data, f"{run.name}/metrics.jsonl"))
        found[run.key] += [seconds for seconds in logged if seconds]
    return {key: statistics.median(times) for key, times in found.items() if times}


def products(dtype: str) -> float:
    """FLOP/s of a large matrix product on all devices here."""
    platform, n = jax.default_backend(), SIDE.get(jax.default_backend(), 8192)
    x = jnp.ones((n, n), dtype)
    multiply = jax.jit(jnp.matmul).lower(x, x).compile()
    taken = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        multiply(x, x).block_until_ready()
        taken.append(time.perf_counter() - begun)
    devices = 1 if platform == "cpu" else jax.device_count()  # those of a CPU share its cores
    return 2 * n**3 / min(taken) * devices
