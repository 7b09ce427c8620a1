"""How much of this machine's matrix speed a whole training step reaches.

    uv run benchmarks/train_step.py --config=configs/dense.py:small --config.train.batch=8

Prints tokens/s and model FLOP/s of the compiled step (median of several runs of a few steps), and
the machine's own peak: the best of large square products in the compute dtype, measured between the
runs, so that a noisy neighbour slows both. Their ratio is the model FLOP utilisation.
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

from objectives import Blank
from training import mesh as meshes
from training import report
from training.command import guarded
from training.flags import parse
from training.program import program
from training.settings import Settings, resolved

VOCAB, ROUNDS, STEPS = 365, 7, 3
SIZES = (1024, 2048)  # of the square matrices whose product is the peak


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def products(dtype: str) -> list[tuple[float, Callable[[], object]]]:
    """(FLOPs, function) of the products that measure the peak."""
    made = []
    for size in SIZES:
        x = jnp.ones((size, size), dtype)
        multiply = jax.jit(lambda a, b: a @ b).lower(x, x).compile()
        made.append((2.0 * size**3, lambda multiply=multiply, x=x: multiply(x, x)))
    return made


def run(argv: Sequence[str]) -> None:
    settings = resolved(parse(argv, Settings, about=__doc__ or "").settings, VOCAB)
    made = program(settings, meshes.build(settings.mesh))
    bill, train = report.priced(settings), settings.train
    tokens = train.batch * train.length * STEPS
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, VOCAB, train.length + 1).astype(np.int32) for _ in range(train.batch)]
    example = made.objective.host(made.settings.model, train.length, Blank())
    rows = [example([piece], train.length, rng) for piece in pieces]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    compiled = made.compiled()
    peaks, speeds = [], []
    with jax.set_mesh(made.mesh):
        batch = jax.device_put(batch, meshes.rows(made.mesh))
        state, _ = compiled(made.init(), batch)

        def steps() -> object:
            nonlocal state
            for _ in range(STEPS):
                state, metrics = compiled(state, batch)
            return metrics

        gemms = products(settings.model.dtype)
        for _, multiply in gemms:
            multiply()
        for _ in range(ROUNDS):
            speeds.append(tokens / seconds(steps))
            peaks.append(max(f / min(seconds(m) for _ in range(3)) for f, m in gemms))
    speed, peak = statistics.median(speeds), statistics.median(peaks) * made.mesh.size
    achieved = 3 * bill.model_flops * speed
    print(
        f"parameters          {report.short(bill.params)} ({report.short(bill.body_params)} body)"
    )
    print(f"batch x length      {train.batch} x {train.length}, {settings.model.dtype}")
    print(f"tokens per second   {speed:,.0f}")
    print(f"model FLOP/s        {report.short(achieved)}")
    print(f"matrix peak FLOP/s  {report.short(peak)}")
    print(f"ratio               {achieved / peak:.2f}")


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
