"""Simulates tuned comparisons, and counts which intervals hold the difference expected of searches.

    python benchmarks/simulations/tuning_calibration.py --out=results/tuning_calibration.json

Two candidates have losses that are bowls over the tuned settings, with other centers and slopes.
Both get the same Halton points, scored with two tuning seeds; the best trial of each is repeated
with evaluation seeds. Another study has other points and seeds. The difference that is expected of
such studies is their mean; counted is how often the 95 % interval over seeds, and the one over
seeds and tunings (`protocol/statistics/tuning_spread.py`), holds it.
"""

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

from protocol.statistics.hypothesis_tests import welch
from protocol.statistics.tuning_spread import TunedDifference, tuned_difference

STUDIES = 400  # Of each pair of candidates.
PAIRS = 5
TUNING_SEEDS = 2


class TuningCell(NamedTuple):
    """A kind of simulated study."""

    n_settings: int
    n_trials: int
    n_seeds: int  # Evaluation seeds.
    steepness: float  # Loss at a distance of the whole range from the center, over sigma.


CELLS = (
    TuningCell(3, 16, 3, 30.0),
    TuningCell(3, 16, 3, 5.0),
    TuningCell(3, 16, 3, 2.0),
    TuningCell(3, 16, 3, 150.0),
    TuningCell(1, 16, 3, 30.0),
    TuningCell(3, 8, 3, 30.0),
    TuningCell(3, 32, 5, 30.0),
)


def simulate_pair(cell: TuningCell, rng: np.random.Generator) -> list[TunedDifference]:
    """Returns the intervals of the studies of one pair of candidates; sigma of a seed is 1."""
    shape = 2, 1, cell.n_settings
    centers, slopes = rng.uniform(0.2, 0.8, shape), cell.steepness * rng.uniform(0.5, 1.5, shape)
    intervals = []
    for _ in range(STUDIES):
        points = qmc.Halton(cell.n_settings, scramble=True, rng=rng).random(cell.n_trials)
        losses = (slopes * (points - centers) ** 2).sum(axis=-1)
        tuned = losses + rng.normal(size=losses.shape) / math.sqrt(TUNING_SEEDS)
        chosen = [loss[row.argmin()] for loss, row in zip(losses, tuned, strict=True)]
        difference = welch(*(x + rng.normal(size=cell.n_seeds) for x in chosen))
        scores = tuned[0].tolist(), tuned[1].tolist()
        mean, half_width = float(difference.mean), float(difference.half_width())
        if interval := tuned_difference(mean, half_width, scores):
            intervals.append(interval)
    return intervals


def simulate_cell(cell: TuningCell, seed: int) -> dict[str, object]:
    """Returns the shares of studies whose intervals hold the expected difference, in percent."""
    rng = np.random.default_rng(seed)
    covered = {"seeds": 0, "total": 0}
    for _ in range(PAIRS):
        intervals = simulate_pair(cell, rng)
        truth = np.mean([x.mean for x in intervals])
        covered["seeds"] += sum(bool(x.seeds.low <= truth <= x.seeds.high) for x in intervals)
        covered["total"] += sum(bool(x.total.low <= truth <= x.total.high) for x in intervals)
    percent = {key: round(100 * n / (PAIRS * STUDIES), 1) for key, n in covered.items()}
    return cell._asdict() | {"studies": PAIRS * STUDIES, "coverage_percent": percent}


def main() -> None:
    """Simulates all cells and writes their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the table")
    args = parser.parse_args()
    rows = []
    for number, cell in enumerate(CELLS):
        rows.append(simulate_cell(cell, number))
        print(json.dumps(rows[-1]), flush=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    args.out.write_text(f"[\n{lines}\n]\n", "utf-8")


if __name__ == "__main__":
    main()
