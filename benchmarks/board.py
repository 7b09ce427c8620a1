"""Measures how long `leaderboard.py` takes for many run folders, including the start of Python.

    uv run benchmarks/board.py [--runs=1000] [--rows=100] [--repeats=3]

The folders are synthetic: three seeds per candidate, four budgets and several batch sizes, so that
there are families, groups and comparisons. The goal is 10 s for 1,000 folders.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from board_runs import FLOPS, run

ROOT = Path(__file__).parents[1]

SEEDS = 3
BUDGETS = (1.0, 2.0, 4.0, 8.0)


def write_run_folders(root: Path, runs: int, rows: int) -> None:
    """Writes `runs` synthetic run folders with `rows` rows of metrics each."""
    for index in range(runs):
        candidate, seed = divmod(index, SEEDS)
        budget = BUDGETS[candidate % len(BUDGETS)]
        width = 64 + 8 * (candidate % 30)
        run(
            root / f"{candidate:04}-{seed}",
            f"candidate-{candidate}",
            seed,
            2 / budget**0.1 + 0.01 * (candidate % 17) + 0.003 * seed,
            rows=rows,
            scores=[("probe/genre", 0.5), ("probe/era", 0.4)],
            flops=FLOPS * budget,
            params=width * 10_000,
            model={"width": width, "layers": [f"mixer{candidate % 5}+mlp"]},
            train={"batch_size": 4 + candidate // 120},
            study={"value": FLOPS * budget * 100 * 256},
        )


def main() -> None:
    """Runs the benchmark of the board and prints its times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_run_folders(Path(folder, "runs"), args.runs, args.rows)
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
        print(f"{args.runs} run folders of {args.rows} rows, {size / 2**20:.0f} MiB")
        command = [sys.executable, str(ROOT / "leaderboard.py"), f"{folder}/runs"]
        for _ in range(args.repeats):
            start = time.perf_counter()
            subprocess.run([*command, f"--out={folder}/board"], stdout=subprocess.PIPE, check=True)
            seconds = time.perf_counter() - start
            page = Path(folder, "board", "leaderboard.html").stat().st_size
            print(f"{seconds:6.2f} s, page of {page / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
