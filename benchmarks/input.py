"""Tokens per second of the input, stage by stage, on the embedded corpus.

    uv run benchmarks/input.py [--batch=32] [--length=256] [--seconds=2]

The last line is what a training loop gets. It has to be at least 20 times what a model of one
million parameters takes, so that waiting for data never limits a comparison.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from data import DataConfig, open_data
from data.loader import Batch, Batches, read_ahead
from data.packing import Packed
from data.store import TOKENS

MODEL = 60_000  # tokens/s of a model of one million parameters on two cores
GOAL = 20


def next_token(pieces: list[np.ndarray], length: int, rng: np.random.Generator) -> Batch:
    """The arrays of a causal language model, as `objectives` makes them."""
    out = {n: np.zeros(length, np.int32) for n in ("tokens", "targets", "positions", "segments")}
    at = 0
    for segment, piece in enumerate(pieces, 1):
        end = at + len(piece) - 1
        out["tokens"][at:end] = piece[:-1]
        out["targets"][at:end] = piece[1:]
        out["positions"][at:end] = np.arange(end - at)
        out["segments"][at:end] = segment
        at = end
    weights = (out["segments"] > 0).astype(np.float32)
    return out | {"weights": weights, "prefix": np.zeros(length, bool)}


def rate(step: Callable[[], object], tokens: int, seconds: float) -> float:
    """Tokens per second of repeated calls, the first one not counted."""
    step()
    calls, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        step()
        calls += 1
    return calls * tokens / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--tokenizer", default="bytes")
    args = parser.parse_args()
    store = open_data(DataConfig(tokenizer=args.tokenizer)).train
    tokens = args.batch * args.length
    packed = Packed(store, args.length, 1, seed=0)
    batches = Batches(packed, args.batch, next_token, 0)
    raw = np.memmap(store.folder / TOKENS, np.uint16, "r")
    rng = np.random.default_rng(0)
    numbers = iter(range(1 << 62))

    def memmap() -> np.ndarray:
        starts = rng.integers(len(raw) - args.length, size=args.batch)
        return np.stack([raw[s : s + args.length] for s in starts.tolist()])

    def rows() -> list:
        first = next(numbers) * args.batch
        return [packed.row(first + i) for i in range(args.batch)]

    stages: dict[str, Callable[[], object]] = {
        "raw memory map": memmap,
        "packed rows": rows,
        "batches": lambda: batches[next(numbers)],
        "batches, rolling hash": lambda: batches.with_digest(next(numbers)),
    }
    for name, stage in stages.items():
        print(f"{name:40}{rate(stage, tokens, args.seconds) / 1e6:8.2f} M tokens/s")
    with read_ahead(batches, 0, rolling="") as ahead:
        last = rate(lambda: next(ahead), tokens, args.seconds)
    print(f"{'through grain, rolling hash':40}{last / 1e6:8.2f} M tokens/s")
    print(f"goal {GOAL * MODEL / 1e6:.2f} M tokens/s: {last / MODEL:.0f} x a 1M-parameter model")


if __name__ == "__main__":
    main()
