"""Measures how much of this machine's matrix throughput a complete training step achieves.

    uv run benchmarks/train_step.py --config=configs/dense.py:small --config.train.batch_size=8

Prints tokens/s and model FLOP/s of the compiled step (median of several rounds of a few steps). The
peak of the machine is the best of large square matrix products in the compute dtype. It is measured
between the rounds, so that other processes slow both equally. The ratio is the model FLOP
utilization.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder's ops.py

from formatting import format_si
from objectives import DummyTokenizer
from settings.cli import parse_args
from training import accounting
from training import mesh as meshes
from training.program import make_program
from training.run.cli_errors import run_command
from training.settings import Settings, resolve

VOCAB, ROUNDS, STEPS = 365, 7, 3
MATRIX_SIZES = (1024, 2048)  # widths of the square matrices that measure the peak


def time_call(run: Callable[[], object]) -> float:
    """Returns the seconds of one call, including its computation on the device."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def make_matmuls(dtype: str) -> list[tuple[float, Callable[[], object]]]:
    """Returns (FLOPs, function) of the matrix products that measure the peak."""
    products: list[tuple[float, Callable[[], object]]] = []
    for size in MATRIX_SIZES:
        x = jnp.ones((size, size), dtype)
        multiply = jax.jit(lambda a, b: a @ b).lower(x, x).compile()
        products.append((2.0 * size**3, lambda multiply=multiply, x=x: multiply(x, x)))
    return products


def run(argv: Sequence[str]) -> None:
    """Runs the benchmark of the training step for one command line."""
    settings = resolve(parse_args(argv, Settings, description=__doc__ or "").settings, VOCAB)
    program = make_program(settings, meshes.make_mesh(settings.mesh))
    cost, train = accounting.model_cost(settings), settings.train
    tokens = train.batch_size * train.seq_len * STEPS
    rng = np.random.default_rng(0)
    texts = [
        rng.integers(0, VOCAB, train.seq_len + 1).astype(np.int32) for _ in range(train.batch_size)
    ]
    make_row = program.objective.make_row_fn(
        program.settings.model, train.seq_len, DummyTokenizer()
    )
    rows = [make_row([text], train.seq_len, rng) for text in texts]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    compiled = program.compile_train_step()
    peaks, speeds = [], []
    with jax.set_mesh(program.mesh):
        batch = jax.device_put(batch, meshes.batch_sharding(program.mesh))
        state, _ = compiled(program.init(), batch)

        def steps() -> object:
            nonlocal state
            for _ in range(STEPS):
                state, metrics = compiled(state, batch)
            return metrics

        products = make_matmuls(settings.model.dtype)
        for _, multiply in products:
            multiply()
        for _ in range(ROUNDS):
            speeds.append(tokens / time_call(steps))
            peaks.append(max(f / min(time_call(m) for _ in range(3)) for f, m in products))
    speed, peak = statistics.median(speeds), statistics.median(peaks) * program.mesh.size
    achieved = 3 * cost.model_flops * speed
    non_embedding = format_si(cost.non_embedding_params)
    print(f"parameters          {format_si(cost.params)} ({non_embedding} non-embedding)")
    print(f"batch x length      {train.batch_size} x {train.seq_len}, {settings.model.dtype}")
    print(f"tokens per second   {speed:,.0f}")
    print(f"model FLOP/s        {format_si(achieved)}")
    print(f"matrix peak FLOP/s  {format_si(peak)}")
    print(f"ratio               {achieved / peak:.2f}")


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
