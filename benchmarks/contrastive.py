"""What a batch beyond memory costs: representations cached over chunks, beside one chunk alone.

    uv run benchmarks/contrastive.py --config=configs/contrastive.py --config.train.batch=16

Compiles the step for one batch, and for one of `CHUNKS` times as many rows in as many microbatches.
Prints the ratio of times per row (median of interleaved rounds) and of the temporary memory that
the compiler states; what grows with the batch itself, its tokens, is left out of the latter. With
this command the ratios were .96 (the update is shared by more rows) and 1.03, on two busy cores.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder's ops.py

from objectives import Blank
from training import memory
from training import mesh as meshes
from training.command import guarded
from training.flags import parse
from training.program import Program, program
from training.settings import Settings, resolved

VOCAB, CHUNKS, ROUNDS = 4096, 8, 7


def made(settings: Settings, chunks: int) -> tuple[Program, Any, dict[str, Any]]:
    """A program, compiled, and a batch for it."""
    train = settings.train
    train = dataclasses.replace(train, batch=train.batch * chunks, accumulate=chunks)
    settings = dataclasses.replace(settings, train=train)
    own = program(settings, meshes.build(settings.mesh))
    rng, rows = np.random.default_rng(0), settings.rows
    example = own.objective.host(settings.model, train.length, Blank(vocab=VOCAB))
    texts = [
        [rng.integers(0, VOCAB, train.length).astype(np.int32) for _ in range(rows.texts)]
        for _ in range(train.batch)
    ]
    found = [example(text, rows.text, rng) for text in texts]
    batch = {name: np.stack([row[name] for row in found]) for name in found[0]}
    return own, own.compiled(), batch


def run(argv: Sequence[str]) -> None:
    settings = resolved(parse(argv, Settings, about=__doc__ or "").settings, VOCAB)
    pair = [made(settings, chunks) for chunks in (1, CHUNKS)]
    states, times = [], list[list[float]]([[], []])
    for own, _, _ in pair:
        with jax.set_mesh(own.mesh):
            states.append(own.init())
    for _ in range(ROUNDS + 1):  # the first warms up
        for i, (own, step, batch) in enumerate(pair):
            with jax.set_mesh(own.mesh):
                placed = jax.device_put(batch, {n: s.sharding for n, s in own.batch.items()})
                began = time.perf_counter()
                states[i], metrics = step(states[i], placed)
                jax.block_until_ready(metrics)
                times[i].append((time.perf_counter() - began) / own.settings.train.batch)
    one, many = (statistics.median(some[1:]) for some in times)
    room = [memory.measured(step)["temporary"] for _, step, _ in pair]
    train = settings.train
    print(f"rows x length       {train.batch} x {train.length}, then {CHUNKS} times as many")
    print(f"seconds per row     {one:.4f} and {many:.4f}, ratio {many / one:.2f}")
    print(f"temporary MiB       {room[0] / 2**20:.1f} and {room[1] / 2**20:.1f}, ", end="")
    print(f"ratio {room[1] / room[0]:.2f}")


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
