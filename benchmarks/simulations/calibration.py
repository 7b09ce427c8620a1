"""Simulates studies with known means, and counts what the board would claim falsely.

    python benchmarks/simulations/calibration.py --out=results/calibration.json

A cell is a kind of errors, a design (all comparisons with a reference, or all pairs), a number of
candidates and of seeds, and a pattern of true means. In each simulated study the board's own
functions make the verdicts and ranks. Counted are: studies with a false claim (of equal candidates,
or of the wrong order), ranks that contradict a verdict, and studies in which a truly worse row is
strictly ahead of a better one. Further cells look after every added seed, at declared looks.
"""

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protocol.statistics.power import detectable_difference
from protocol.statistics.ranks import compute_ranks
from protocol.statistics.sample import CandidateSample
from protocol.statistics.sequential import look_level
from protocol.statistics.verdict import MetricSpec, Verdict, compare_candidates

STUDIES = 2000
SIGMA = 0.01
MEANS = {  # True means in standard deviations, by pattern.
    "equal": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "apart": (0.0, 0.0, 2.0, 2.0, 5.0, -5.0),
}
LOOKS = ((3, 4, 5, 6, 7, 8), (3, 5, 8))
Draw = Callable[[np.random.Generator, int, int], np.ndarray]  # (rng, candidates, seeds)


def _normal(rng: np.random.Generator, k: int, n: int) -> np.ndarray:
    return rng.normal(size=(k, n))


def _unequal(rng: np.random.Generator, k: int, n: int) -> np.ndarray:
    return rng.normal(size=(k, n)) * np.where(np.arange(k) % 2, 3.0, 1.0)[:, None]


def _noisy_reference(rng: np.random.Generator, k: int, n: int) -> np.ndarray:
    return rng.normal(size=(k, n)) * np.where(np.arange(k) == 0, 7.0, 1.0)[:, None]


def _t3(rng: np.random.Generator, k: int, n: int) -> np.ndarray:
    return rng.standard_t(3, size=(k, n)) / math.sqrt(3)


def _lognormal(rng: np.random.Generator, k: int, n: int) -> np.ndarray:
    x = rng.lognormal(0.0, 1.0, size=(k, n))
    return (x - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)


def _mirrored(rng: np.random.Generator, k: int, n: int) -> np.ndarray:
    """Candidates with opposite skew: the case that the page names as an assumption."""
    return _lognormal(rng, k, n) * np.where(np.arange(k) % 2, -1.0, 1.0)[:, None]


def _spiky(rng: np.random.Generator, k: int, n: int) -> np.ndarray:
    spikes = 6.0 * (rng.random((k, n)) < 0.1)
    return rng.normal(size=(k, n)) + spikes - 0.6


def _shared_seeds(rng: np.random.Generator, k: int, n: int) -> np.ndarray:
    return math.sqrt(0.8) * rng.normal(size=(1, n)) + math.sqrt(0.2) * rng.normal(size=(k, n))


def _ties(rng: np.random.Generator, k: int, n: int) -> np.ndarray:
    return np.round(rng.normal(size=(k, n)))


def _dependent(rng: np.random.Generator, k: int, n: int) -> np.ndarray:
    """Seeds that depend on each other in pairs: the other case that the page names."""
    pairs = np.repeat(rng.normal(size=(k, (n + 1) // 2)), 2, axis=1)[:, :n]
    return math.sqrt(0.7) * pairs + math.sqrt(0.3) * rng.normal(size=(k, n))


ERRORS: dict[str, Draw] = {
    "normal": _normal,
    "spread 1:3": _unequal,
    "reference 7:1": _noisy_reference,
    "t3": _t3,
    "lognormal": _lognormal,
    "10 % spikes": _spiky,
    "shared seeds .8": _shared_seeds,
    "ties": _ties,
    "opposite skew (assumption)": _mirrored,
    "dependent seeds (assumption)": _dependent,
}


class SimulatedCell(NamedTuple):
    """A kind of simulated study."""

    errors: str
    design: str  # "reference" or "all pairs"
    means: str
    n_candidates: int
    n_seeds: int
    is_paired: bool = False
    looks: tuple[int, ...] = ()


@dataclasses.dataclass
class Counts:
    """What is counted over the studies of a cell."""

    false_claims: int = 0  # Studies with a false claim.
    contradictions: int = 0  # Ranks that contradict a verdict.
    worse_ahead: int = 0  # Studies in which a truly worse row is strictly ahead.
    n_covered: int = 0  # Intervals of sentences that hold the true difference.
    n_intervals: int = 0
    n_found: int = 0  # Pairs of unequal candidates that are claimed.
    n_unequal: int = 0


def cells() -> Iterator[SimulatedCell]:
    """Yields all cells; two candidates have one design, and no pattern of unequal means."""
    for errors, design, means in itertools.product(ERRORS, ("reference", "all pairs"), MEANS):
        for k, n in itertools.product((2, 4, 6), (3, 5, 8)):
            if k > 2 or (design, means) == ("reference", "equal"):
                yield SimulatedCell(errors, design, means, k, n)
    for means, n in itertools.product(MEANS, (3, 5, 8)):
        yield SimulatedCell("shared seeds .8", "all pairs", means, 4, n, is_paired=True)
    for errors, k, looks in itertools.product(("normal", "spread 1:3", "t3"), (2, 4), LOOKS):
        yield SimulatedCell(errors, "reference", "equal", k, looks[-1], looks=looks)


def simulate(cell: SimulatedCell, rng: np.random.Generator, n_studies: int) -> Counts:
    """Returns the counts of `n_studies` simulated studies of a cell."""
    counts, means = Counts(), np.array(MEANS[cell.means][: cell.n_candidates]) * SIGMA
    names = [f"c{i}" for i in range(cell.n_candidates)]
    all_pairs = list(itertools.combinations(names, 2))
    pairs = all_pairs if cell.design == "all pairs" else [(a, names[0]) for a in names[1:]]
    truth = dict(zip(names, means.tolist(), strict=True))
    for _ in range(n_studies):
        draws = ERRORS[cell.errors](rng, cell.n_candidates, cell.n_seeds)
        values = 2.0 + means[:, None] + SIGMA * draws
        verdicts = _verdicts(cell, names, values, pairs)
        _count_claims(counts, verdicts, truth)
        samples = [CandidateSample(n, tuple(v)) for n, v in zip(names, values, strict=True)]
        _count_ranks(counts, compute_ranks(samples, verdicts), verdicts, truth)
    return counts


def _verdicts(
    cell: SimulatedCell, names: list[str], values: np.ndarray, pairs: list[tuple[str, str]]
) -> list[Verdict]:
    """Returns the verdicts of a study; with looks, the first claim on each pair stands."""
    claims: dict[int, Verdict] = {}
    verdicts: list[Verdict] = []
    alpha = look_level(cell.looks, 0.05, len(pairs))
    for n in cell.looks or (cell.n_seeds,):
        samples = [
            CandidateSample(name, tuple(row[:n]), seeds=tuple(range(n)))
            for name, row in zip(names, values, strict=True)
        ]
        verdicts = compare_candidates(
            samples, pairs, MetricSpec(), alpha=alpha, is_paired=cell.is_paired
        )
        for index, verdict in enumerate(verdicts):
            if verdict.winner():
                claims.setdefault(index, verdict)
    return [claims.get(index, verdict) for index, verdict in enumerate(verdicts)]


def _count_claims(counts: Counts, verdicts: list[Verdict], truth: dict[str, float]) -> None:
    is_false = False
    for v in verdicts:
        difference = truth[v.a.name] - truth[v.b.name]
        claimed = {"lower": -1, "higher": 1}.get(v.kind, 0)
        is_false |= bool(claimed) and claimed * difference <= 0
        counts.n_unequal += bool(difference)
        counts.n_found += bool(difference) and claimed * difference > 0
        if v.difference is not None and v.half_width:
            counts.n_intervals += 1
            counts.n_covered += abs(float(v.difference.mean) - difference) <= v.half_width
    counts.false_claims += is_false


def _count_ranks(
    counts: Counts, ranks: dict, verdicts: list[Verdict], truth: dict[str, float]
) -> None:
    for verdict in verdicts:
        if (defeat := verdict.defeat()) and ranks:
            better, worse = (ranks[name] for name in defeat)
            counts.contradictions += better.low >= worse.low or better.high >= worse.high
    ahead = ((a, b) for a, b in itertools.permutations(ranks, 2) if ranks[a].high < ranks[b].low)
    counts.worse_ahead += any(truth[a] > truth[b] for a, b in ahead)


def simulate_power(rng: np.random.Generator, n_studies: int) -> list[dict[str, object]]:
    """Returns how often studies find the difference that the plan calls the smallest claimable."""
    rows: list[dict[str, object]] = []
    for ratio, n, m in itertools.product((1.0, 3.0), (3, 5, 8), (1, 3, 6)):
        effect = detectable_difference(SIGMA, ratio * SIGMA, n, m)
        n_found = 0
        for _ in range(n_studies):
            a = CandidateSample("a", tuple(rng.normal(effect, SIGMA, n)))
            b = CandidateSample("b", tuple(rng.normal(0.0, ratio * SIGMA, n)))
            (verdict,) = compare_candidates(
                [a, b], [("a", "b")], MetricSpec(), n_other_comparisons=m - 1
            )
            n_found += verdict.winner() == "b"
        rows.append({"ratio": ratio, "seeds": n, "comparisons": m, "found": n_found / n_studies})
    return rows


def main() -> None:
    """Simulates all cells and writes the table; the worst cells are printed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the table")
    parser.add_argument("--studies", type=int, default=STUDIES, help="studies of a cell")
    args = parser.parse_args()
    rows = []
    for number, cell in enumerate(cells()):
        counts = simulate(cell, np.random.default_rng(number), args.studies)
        rows.append(cell._asdict() | dataclasses.asdict(counts))
        print(*cell, *(f"{k}={v}" for k, v in dataclasses.asdict(counts).items()), flush=True)
    record = {
        "studies": args.studies,
        "cells": rows,
        "power": simulate_power(np.random.default_rng(17), args.studies),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(format_record(record), "utf-8")


def format_record(record: dict[str, object]) -> str:
    """Returns the table as JSON with one line for each cell."""
    return json.dumps(record).replace("}, {", "},\n{") + "\n"


if __name__ == "__main__":
    main()
