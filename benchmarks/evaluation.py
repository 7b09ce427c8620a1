"""Compares the time of an evaluation with its forward FLOPs at the speed of training.

    uv run benchmarks/evaluation.py [--architectures=dense,moe] [--objectives=causal_lm,masked_lm]

A forward pass has a third of the FLOPs of a training step. The evaluation of a part of the test
split (reading, hashing and scoring of `--windows` windows) and steps of training alternate, so that
a busy machine slows both alike. The ratio compares the time per token of the evaluation with a
third of that of training; the goal is at most 1.2. It counts no compilation, which is printed
beside it and happens once per process.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import grid
from data.open_stores import open_data
from eval.harness import TASKS, default_tasks
from eval.task import EvalContext
from settings.changes import with_changes
from settings.tree import freeze
from training import mesh as meshes
from training.loop import part_batches, to_device
from training.program import make_program
from training.settings import Settings, resolve

GOAL, ROUNDS, STEPS = 1.2, 5, 3


def seconds_of(call: Callable[[], object]) -> float:
    """Returns the seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(architecture: str, objective: str, width: int, n_windows: int) -> None:
    """Prints the time of an evaluation beside that of its FLOPs in training."""
    settings = freeze(Settings, grid.get_config(f"{architecture}-{objective}"))
    data = open_data(settings.data, settings.store_kinds)
    length = settings.mixture_parts()[0].objective.for_eval()
    window = length.row_spec(settings.model, settings.train.seq_len).text_length
    changes = {"eval.limit": n_windows * window, "model.width": width}
    settings = with_changes(settings, changes)
    settings = resolve(settings, data.tokenizer.vocab_size)
    mesh = meshes.make_mesh(settings.mesh)
    program = make_program(settings, mesh)
    step, part = program.compile_train_step(), settings.mixture_parts()[0]
    batches = part_batches(settings, part, data, mesh)
    task = TASKS[default_tasks(settings)[0]](splits=("test",))
    with jax.set_mesh(mesh):
        batch, state = to_device(program, 0, batches[0]), program.init()

    def train() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            for _ in range(STEPS):
                state, metrics = step(state, batch)
            jax.block_until_ready(metrics)

    def evaluate() -> None:
        ctx = EvalContext(state.trainable, mesh, settings, program.objective, data)
        assert list(task(ctx))

    train()
    first = seconds_of(evaluate)
    times = [(seconds_of(evaluate), seconds_of(train)) for _ in range(ROUNDS)]
    trained = STEPS * settings.train.batch_size * batches.row_source.row_length
    ratios = [3 * a / (n_windows * window) / (b / trained) for a, b in times]
    warm = statistics.median(a for a, _ in times)
    print(
        f"{architecture:10}{objective:14}{n_windows * window / warm:12,.0f} tokens/s"
        f"{first - warm:9.1f} s to compile{statistics.median(ratios):8.2f}, goal {GOAL}",
        flush=True,
    )


def main() -> None:
    """Runs the benchmark of evaluation for the flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", default="dense,moe,mamba2")
    parser.add_argument("--objectives", default="causal_lm,masked_lm,denoising")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--windows", type=int, default=128)
    args = parser.parse_args()
    for architecture in args.architectures.split(","):
        for objective in args.objectives.split(","):
            if architecture != "mamba2" or objective == "causal_lm":
                compare(architecture, objective, args.width, args.windows)


if __name__ == "__main__":
    main()
