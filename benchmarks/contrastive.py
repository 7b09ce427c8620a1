"""Measures the cost of a contrastive batch that is larger than memory.

    uv run benchmarks/contrastive.py --config=configs/contrastive.py --config.train.batch_size=16

Compares the step of one batch with the step of a batch of `CHUNKS` times as many rows, which caches
representations over as many microbatches. Prints the ratio of the times per row (median of
interleaved rounds) and the ratio of the temporary memory that the compiler reports. The temporary
memory excludes the tokens of the batch, which always grow with it. With the command above the
ratios were .96 (more rows share one update) and 1.03, on two busy cores.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder's ops.py

from objectives import DummyTokenizer
from settings.changes import with_changes
from settings.cli import parse_args
from training import mesh as meshes
from training.preflight import memory_estimate
from training.program import TrainProgram, make_program
from training.run.cli_errors import run_command
from training.settings import Settings, resolve

VOCAB, CHUNKS, ROUNDS = 4096, 8, 7


def make_program_and_batch(
    settings: Settings, chunks: int
) -> tuple[TrainProgram, Any, dict[str, Any]]:
    """Returns a program, its compiled step, and a random batch of `chunks` microbatches."""
    train = settings.train
    changes = {"train.batch_size": train.batch_size * chunks, "train.grad_accum_steps": chunks}
    settings = with_changes(settings, changes)
    program = make_program(settings, meshes.make_mesh(settings.mesh))
    rng, row_spec = np.random.default_rng(0), settings.row_spec
    make_row = program.objective.make_row_fn(
        settings.model, train.seq_len, DummyTokenizer(vocab_size=VOCAB)
    )
    texts = [
        [rng.integers(0, VOCAB, train.seq_len).astype(np.int32) for _ in range(row_spec.n_texts)]
        for _ in range(train.batch_size)
    ]
    examples = [make_row(text, row_spec.text_length, rng) for text in texts]
    batch = {name: np.stack([row[name] for row in examples]) for name in examples[0]}
    return program, program.compile_train_step(), batch


def run(argv: Sequence[str]) -> None:
    """Runs the benchmark of contrastive batches for one command line."""
    settings = resolve(parse_args(argv, Settings, description=__doc__ or "").settings, VOCAB)
    pair = [make_program_and_batch(settings, chunks) for chunks in (1, CHUNKS)]
    states, times = [], list[list[float]]([[], []])
    for program, _, _ in pair:
        with jax.set_mesh(program.mesh):
            states.append(program.init())
    for _ in range(ROUNDS + 1):  # the first warms up
        for i, (program, step, batch) in enumerate(pair):
            with jax.set_mesh(program.mesh):
                placed = jax.device_put(
                    batch, {n: s.sharding for n, s in program.abstract_batch.items()}
                )
                start = time.perf_counter()
                states[i], metrics = step(states[i], placed)
                jax.block_until_ready(metrics)
                times[i].append((time.perf_counter() - start) / program.settings.train.batch_size)
    single, chunked = (statistics.median(rounds[1:]) for rounds in times)
    memory = [memory_estimate.compiled_memory(step)["temporary"] for _, step, _ in pair]
    train = settings.train
    print(f"rows x length       {train.batch_size} x {train.seq_len}, then {CHUNKS} times as many")
    print(f"seconds per row     {single:.4f} and {chunked:.4f}, ratio {chunked / single:.2f}")
    print(f"temporary MiB       {memory[0] / 2**20:.1f} and {memory[1] / 2**20:.1f}, ", end="")
    print(f"ratio {memory[1] / memory[0]:.2f}")


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
