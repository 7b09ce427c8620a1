"""Compares the throughput of the input pipeline with that of a model, for every objective.

    uv run benchmarks/input.py [--architecture=dense] [--objectives=causal_lm,contrastive]

Measures rows per second of the input as the training loop receives it (packing, the objective's
work on each row, the rolling hash, stacked by a grain thread), and of the compiled step of a model
of one million parameters on the same rows, in alternating rounds. The host must be at least 20
times as fast, so that the input never limits a comparison. On two cores that ten other processes
also used, the ratio was 561 (causal_lm), 219 (masked_lm), 183 (denoising) and 762 (contrastive). A
second table has the stages of the input for causal_lm.
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
from data.loader import Batches, read_ahead
from data.open_stores import Data, open_data
from data.store_index import TOKENS_FILE
from objectives import OBJECTIVES
from settings.tree import freeze
from training import mesh as meshes
from training.loop import part_batches, to_device
from training.program import make_program
from training.settings import Settings, resolve

GOAL, ROUNDS = 20, 5
STEPS = {"host": 60, "model": 2}  # calls in one round


def time_call(call: Callable[[], object], times: int) -> float:
    """Returns the average seconds of one call among `times` calls."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def load_settings_and_data(architecture: str, objective: str) -> tuple[Settings, Data]:
    """Returns settings and data of an architecture under an objective, at tiny size."""
    settings = freeze(Settings, grid.get_config(f"{architecture}-{objective}"))
    data = open_data(settings.data, settings.store_kinds)
    return resolve(settings, data.tokenizer.vocab_size), data


def compare_throughput(architecture: str, objective: str) -> None:
    """Prints rows per second of the host and of the model, and their ratio."""
    settings, data = load_settings_and_data(architecture, objective)
    mesh = meshes.make_mesh(settings.mesh)
    program = make_program(settings, mesh)
    step = program.compile_train_step()
    batches = part_batches(settings, settings.mixture_parts()[0], data, mesh)
    first = batches[0]
    with jax.set_mesh(mesh), read_ahead(batches, 0, data_hash="") as ahead:
        batch, state = to_device(program, 0, first), program.init()

        def train() -> None:
            nonlocal state
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)

        train()
        pairs = []
        for _ in range(ROUNDS):
            step_seconds = time_call(train, STEPS["model"])
            for _ in range(10):  # the buffer has filled meanwhile; its rows are not counted
                next(ahead)
            pairs.append((time_call(lambda: next(ahead), STEPS["host"]), step_seconds))
    host, model = (
        settings.train.batch_size / statistics.median(seconds)
        for seconds in zip(*pairs, strict=True)
    )
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{objective:14}{host:10,.0f}{model:10,.1f}{ratio:9,.0f} x, goal {GOAL}", flush=True)


def measure_stages(architecture: str) -> None:
    """Prints tokens per second of each stage of the input, for the cheapest objective."""
    settings, data = load_settings_and_data(architecture, "causal_lm")
    mesh, (part,) = meshes.make_mesh(settings.mesh), settings.mixture_parts()
    batches: Batches = part_batches(settings, part, data, mesh)
    batch_size, seq_len = settings.train.batch_size, settings.train.seq_len
    raw = np.memmap(data.train.folder / TOKENS_FILE, np.uint16, "r")
    rng, numbers = np.random.default_rng(0), iter(range(1 << 62))

    def memmap() -> np.ndarray:
        starts = rng.integers(len(raw) - seq_len, size=batch_size)
        return np.stack([raw[s : s + seq_len] for s in starts.tolist()])

    def rows() -> list:
        first = next(numbers) * batch_size
        return [batches.row_source.row(first + i) for i in range(batch_size)]

    calls: dict[str, Callable[[], object]] = {
        "raw memory map": memmap,
        "packed rows": rows,
        "batches": lambda: batches[next(numbers)],
        "batches, rolling hash": lambda: batches.with_digest(next(numbers)),
    }
    for name, call in calls.items():
        call()
        speed = batch_size * seq_len / time_call(call, STEPS["host"])
        print(f"{name:26}{speed / 1e6:8.2f} M tokens/s")


def main() -> None:
    """Runs the benchmark of the input and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="dense")
    parser.add_argument("--objectives", default=",".join(OBJECTIVES))
    args = parser.parse_args()
    print(f"{'':14}{'host':>10}{'model':>10}  rows per second")
    for objective in args.objectives.split(","):
        compare_throughput(args.architecture, objective)
    measure_stages(args.architecture)


if __name__ == "__main__":
    main()
