"""Measures how compile time grows with depth; scanned layers should take the time of one layer.

    uv run benchmarks/compile.py --config.model.width=256

Prints the seconds to compile the complete training step at depth 6 and at depth 24 (median of
three), and their ratio. The ratio must be below 1.2.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder's ops.py

from settings.changes import with_changes
from settings.cli import parse_args
from training import mesh as meshes
from training.program import forget_compiled_steps, make_program
from training.run.cli_errors import run_command
from training.settings import Settings, resolve

DEPTHS, ROUNDS = (6, 24), 3


def compile_seconds(settings: Settings) -> float:
    """Returns the seconds to trace, lower and compile the training step."""
    jax.clear_caches()
    forget_compiled_steps()
    program = make_program(settings, meshes.make_mesh(settings.mesh))
    start = time.perf_counter()
    program.compile_step()
    return time.perf_counter() - start


def run(argv: Sequence[str]) -> None:
    """Runs the benchmark of compile times for one command line."""
    settings = resolve(parse_args(argv, Settings, description=__doc__ or "").settings, 365)
    times_by_depth: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(ROUNDS):
        for depth, times in times_by_depth.items():
            times.append(compile_seconds(with_changes(settings, {"model.depth": depth})))
    shallow, deep = (statistics.median(times) for times in times_by_depth.values())
    for depth, times in times_by_depth.items():
        print(f"depth {depth:3}  {statistics.median(times):6.2f} s")
    print(f"ratio      {deep / shallow:6.2f}")


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
