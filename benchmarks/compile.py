"""How compile time grows with depth: scanned layers cost one layer, whatever their number.

    uv run benchmarks/compile.py --config.model.width=256

Prints seconds to compile the whole training step at depth 6 and at depth 24 (median of three), and
their ratio, which is to stay below 1.2.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder's ops.py

from training import mesh as meshes
from training.command import guarded
from training.flags import parse
from training.program import program
from training.settings import Settings, resolved

DEPTHS, ROUNDS = (6, 24), 3


def seconds(settings: Settings) -> float:
    """To trace, lower and compile the step."""
    jax.clear_caches()
    made = program(settings, meshes.build(settings.mesh))
    began = time.perf_counter()
    made.compiled()
    return time.perf_counter() - began


def run(argv: Sequence[str]) -> None:
    settings = resolved(parse(argv, Settings, about=__doc__ or "").settings, 365)
    found: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(ROUNDS):
        for depth, times in found.items():
            times.append(seconds(with_depth(settings, depth)))
    shallow, deep = (statistics.median(times) for times in found.values())
    for depth, times in found.items():
        print(f"depth {depth:3}  {statistics.median(times):6.2f} s")
    print(f"ratio      {deep / shallow:6.2f}")


def with_depth(settings: Settings, depth: int) -> Settings:
    model = dataclasses.replace(settings.model, depth=depth)
    return dataclasses.replace(settings, model=model)


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
