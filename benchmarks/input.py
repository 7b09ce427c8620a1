"""What the host makes of text beside what a model takes: rows per second, for every objective.

    uv run benchmarks/input.py [--architecture=dense] [--objectives=causal_lm,contrastive]

Times the input as the training loop gets it (packing, the objective's own work on each row, the
rolling hash, stacked by a grain thread) and the compiled step of a model of one million parameters
on the same rows, in rounds that alternate. The host has to be at least 20 times as fast, so that
waiting for data never limits a comparison; on two cores that ten processes used too it was 561
times (causal_lm), 219 (masked_lm), 183 (denoising) and 762 (contrastive). Below stand the stages of
the input for causal_lm.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import grid
from data import Data, open_data
from data.loader import Batches, read_ahead
from data.store import TOKENS
from objectives import OBJECTIVES
from training import mesh as meshes
from training.loop import placed, stream
from training.program import program
from training.settings import Settings, resolved
from training.tree import frozen

GOAL, ROUNDS = 20, 5
STEPS = {"host": 60, "model": 2}  # of a round


def timed(call: Callable[[], object], times: int) -> float:
    """Seconds of one of several calls."""
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times


def settings_of(architecture: str, objective: str) -> tuple[Settings, Data]:
    settings = frozen(Settings, grid.get_config(f"{architecture}-{objective}"))
    data = open_data(settings.data, settings.reads)
    return resolved(settings, data.tokenizer.vocab), data


def compared(architecture: str, objective: str) -> None:
    """Rows per second of the host and of the model, and their ratio."""
    settings, data = settings_of(architecture, objective)
    mesh = meshes.build(settings.mesh)
    made = program(settings, mesh)
    step, batches = made.compiled(), stream(settings, settings.members()[0], data, mesh)
    first = batches[0]
    with jax.set_mesh(mesh), read_ahead(batches, 0, rolling="") as ahead:
        batch, state = placed(made, 0, first), made.init()

        def train() -> None:
            nonlocal state
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)

        train()
        pairs = []
        for _ in range(ROUNDS):
            took = timed(train, STEPS["model"])  # meanwhile the buffer fills: not counted below
            for _ in range(10):
                next(ahead)
            pairs.append((timed(lambda: next(ahead), STEPS["host"]), took))
    host, model = (
        settings.train.batch / statistics.median(some) for some in zip(*pairs, strict=True)
    )
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{objective:14}{host:10,.0f}{model:10,.1f}{ratio:9,.0f} x, goal {GOAL}", flush=True)


def stages(architecture: str) -> None:
    """Tokens per second of each stage of the input, for the objective with the least work."""
    settings, data = settings_of(architecture, "causal_lm")
    mesh, (member,) = meshes.build(settings.mesh), settings.members()
    batches: Batches = stream(settings, member, data, mesh)
    size, length = settings.train.batch, settings.train.length
    raw = np.memmap(data.train.folder / TOKENS, np.uint16, "r")
    rng, numbers = np.random.default_rng(0), iter(range(1 << 62))

    def memmap() -> np.ndarray:
        starts = rng.integers(len(raw) - length, size=size)
        return np.stack([raw[s : s + length] for s in starts.tolist()])

    def rows() -> list:
        first = next(numbers) * size
        return [batches.rows.row(first + i) for i in range(size)]

    calls: dict[str, Callable[[], object]] = {
        "raw memory map": memmap,
        "packed rows": rows,
        "batches": lambda: batches[next(numbers)],
        "batches, rolling hash": lambda: batches.with_digest(next(numbers)),
    }
    for name, call in calls.items():
        call()
        speed = size * length / timed(call, STEPS["host"])
        print(f"{name:26}{speed / 1e6:8.2f} M tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="dense")
    parser.add_argument("--objectives", default=",".join(OBJECTIVES))
    args = parser.parse_args()
    print(f"{'':14}{'host':>10}{'model':>10}  rows per second")
    for objective in args.objectives.split(","):
        compared(args.architecture, objective)
    stages(args.architecture)


if __name__ == "__main__":
    main()
