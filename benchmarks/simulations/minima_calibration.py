"""Simulates isoFLOP studies of two candidates of one law, and counts claims and coverage.

    python benchmarks/simulations/minima_calibration.py --out=results/minima_calibration.json

A study has three budgets of 6 sizes. A size has a mean of its own (size noise, of the same standard
deviation as seeds, or none), which its seeds share. The sizes of one candidate can be twice off the
optimum. The laws have the same optimum at the middle budget. Both candidates are equal, so that
each claim is false; counted are those of the board (which needs both fits), of parabolas alone and
of surfaces alone, and how often the interval of N holds the true optimum. A cell that the file has
already is not simulated again.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protocol.board.isoflop_curves import agree
from protocol.statistics.isoflop import fit_minima, minima_difference
from protocol.statistics.sample import CandidateSample
from protocol.statistics.scaling_law import Point, ScalingLaw, find_optimum
from protocol.statistics.surface import SurfaceFit, fit_surface
from protocol.statistics.verdict import MetricSpec, Verdict, compare_candidates

BUDGETS = (1e18, 3e18, 1e19)
RANGE = np.geomspace(0.25, 4, 6)  # Sizes over the expected best one.
STUDIES = 1000
SIGMAS = (0.005, 0.001)  # Standard deviations over seeds.
CHINCHILLA = ScalingLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
LAWS = {"alpha .34, beta .28": CHINCHILLA}


def _with_equal_optimum(alpha: float, beta: float) -> ScalingLaw:
    """Returns a law whose optimum at the middle budget is that of Chinchilla's law."""
    best = find_optimum(CHINCHILLA, BUDGETS[1])
    A = CHINCHILLA.A * best.params ** (alpha - CHINCHILLA.alpha)
    B = A * alpha * best.tokens**beta / (beta * best.params**alpha)
    return ScalingLaw(CHINCHILLA.E, A, alpha, B, beta)


LAWS["alpha .46, beta .15"] = _with_equal_optimum(0.46, 0.15)


class MinimaCell(NamedTuple):
    """A kind of simulated study."""

    law: str
    sigma: float
    n_seeds: int
    has_size_noise: bool
    center: float  # Sizes of the first candidate over those centered on the optimum.

    @property
    def name(self) -> str:
        """The name of the cell."""
        noise = "size noise" if self.has_size_noise else "no size noise"
        return (
            f"{self.law}; {self.n_seeds} seeds of sigma {self.sigma:g}, {noise}; one grid "
            f"{self.center:g}x off"
        )


def cells() -> Iterator[MinimaCell]:
    """Yields all cells."""
    for sigma, law, n, noise, center in itertools.product(
        SIGMAS, LAWS, (3, 8), (True, False), (1.0, 2.0)
    ):
        yield MinimaCell(law, sigma, n, noise, center)


def simulate_runs(cell: MinimaCell, center: float, rng: np.random.Generator) -> list[Point]:
    """Returns the runs of one candidate."""
    law, points = LAWS[cell.law], []
    for budget in BUDGETS:
        for params in (find_optimum(law, budget).params * center * RANGE).tolist():
            tokens = budget / 6 / params
            mean = law.loss(params, tokens) + cell.has_size_noise * cell.sigma * rng.normal()
            losses = mean + cell.sigma * rng.normal(size=cell.n_seeds)
            points += [Point(params, tokens, x, budget=budget) for x in losses.tolist()]
    return points


def simulate_cell(cell: MinimaCell, n_studies: int, seed: int) -> dict[str, object]:
    """Returns the shares of studies with a claim and of intervals that hold the optimum."""
    rng, law = np.random.default_rng(seed), LAWS[cell.law]
    counts = dict.fromkeys(("both", "parabolas", "surfaces"), 0)
    covered = {"surface": 0, "parabola": 0}
    seconds = 0.0
    for study in range(n_studies):
        a, b = (simulate_runs(cell, center, rng) for center in (cell.center, 1.0))
        start = time.perf_counter()
        surfaces = (
            fit_surface(a, seed=study, with_seeds=False),
            fit_surface(b, n_resamples=1, with_seeds=False),
        )
        seconds += time.perf_counter() - start
        minima = list(zip(fit_minima(a), fit_minima(b), strict=True))
        by_fit = _verdicts(minima, surfaces)
        for name, verdicts in by_fit.items():
            counts[name] += any(v.winner() for v in verdicts)
        for budget, (minimum, _) in zip(BUDGETS, minima, strict=True):
            best = find_optimum(law, budget).params
            low, high = surfaces[0].optimum(budget).params_interval
            covered["surface"] += low <= best <= high
            interval = minimum.params_interval
            covered["parabola"] += interval is None or interval.low <= best <= interval.high
    n = n_studies * len(BUDGETS)
    return {
        "name": cell.name,
        "studies": n_studies,
        "false_claims_percent": {k: 100 * v / n_studies for k, v in counts.items()},
        "coverage_of_n_percent": {k: round(100 * v / n, 2) for k, v in covered.items()},
        "milliseconds_per_surface": round(1e3 * seconds / (n_studies * 203), 3),
    }


def _verdicts(minima: list, surfaces: tuple[SurfaceFit, SurfaceFit]) -> dict[str, list[Verdict]]:
    samples = [CandidateSample("a", (0.0, 1.0, 2.0)), CandidateSample("b", (0.0, 1.0, 2.5))]
    by_fit: dict[str, list[Verdict]] = {"both": [], "parabolas": [], "surfaces": []}
    for budget, (left, right) in zip(BUDGETS, minima, strict=True):
        pairs = {
            "parabolas": minima_difference(left, right),
            "surfaces": minima_difference(*(s.optimum(budget) for s in surfaces)),
        }
        for name, difference in pairs.items():
            by_fit[name] += compare_candidates(
                samples,
                [("a", "b")],
                MetricSpec(),
                n_other_comparisons=len(BUDGETS) - 1,
                differences=[difference],
            )
        by_fit["both"].append(agree(by_fit["parabolas"][-1], by_fit["surfaces"][-1]))
    return by_fit


def main() -> None:
    """Simulates the cells that the file lacks and writes the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the table")
    parser.add_argument("--studies", type=int, default=STUDIES, help="studies of a cell")
    args = parser.parse_args()
    rows = json.loads(args.out.read_text("utf-8")) if args.out.exists() else []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells()):
        if any(row["name"] == cell.name and row["studies"] == args.studies for row in rows):
            continue
        rows.append(simulate_cell(cell, args.studies, number))
        print(json.dumps(rows[-1]), flush=True)
        lines = ",\n".join(json.dumps(row) for row in rows)
        args.out.write_text(f"[\n{lines}\n]\n", "utf-8")


if __name__ == "__main__":
    main()
