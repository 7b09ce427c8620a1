"""Batches as a pure function of (seed, step), and building them ahead of the training loop.

Step s holds rows s * batch to (s + 1) * batch - 1. Each of `world` hosts builds its own contiguous
share of them, so that the global batch does not depend on how many hosts there are, and a run
resumes at any step without a saved iterator.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from data.packing import EXAMPLES, Packed, Piece, philox
from data.store import Store
from data.weighed import laid
from errors import ConfigError, DataError

Batch = dict[str, np.ndarray]
# What an objective makes of a row: (pieces, length, random numbers) -> arrays of [length] by name.
# No pieces: a row of padding.
Example = Callable[[list[np.ndarray], int, np.random.Generator], Batch]


class Rows(Protocol):
    """Anything that gives rows by number: `Packed`, or a class over arrays of your own."""

    length: int  # positions in a row
    positions: int  # in one epoch
    endless: bool  # rows go on after the last one of an epoch

    def row(self, index: int) -> Sequence[Piece]: ...


class Batches:
    """`batches[step]` is a dictionary of arrays [batch / world, ...], as the example makes them."""

    def __init__(
        self,
        rows: Rows,
        batch: int,
        example: Example,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        once: bool = False,
    ):
        """With `once`, what has a weight counts once: so text is judged, whatever its weights."""
        if batch % world:
            near = max(batch // world, 1) * world
            raise ConfigError(
                f"a batch of {batch} sequences does not divide among {world} hosts; nearest: {near}"
            )
        if rows.endless and rows.positions < batch * rows.length:
            raise DataError(
                f"one batch is {batch} x {rows.length} = {batch * rows.length} tokens, all the "
                f"training text is {rows.positions}; lower train.batch or train.length, or add text"
            )
        self.rows = rows
        self.batch = batch
        self.seed = seed
        share = batch // world
        self._mine = range(rank * share, (rank + 1) * share)
        self._example, self._once = example, once

    def __len__(self) -> int:
        """Steps of one epoch; the last one may be partly padding, or of the next epoch."""
        return -(-self.rows.positions // (self.batch * self.rows.length))

    def __getitem__(self, step: int) -> Batch:
        if step < 0 or (not self.rows.endless and step >= len(self)):
            raise IndexError(f"step {step} of {len(self)}")
        return self._built(step, {i: self._row(step, i) for i in self._mine})

    def with_digest(self, step: int) -> tuple[Batch, str]:
        """`self[step]` and `digest(step)`, with the rows read once."""
        rows = {i: self._row(step, i) for i in range(self.batch)}
        return self._built(step, rows), _digest(rows)

    def digest(self, step: int) -> str:
        """sha256 of the tokens of the global batch, whatever the objective makes of them."""
        return _digest({i: self._row(step, i) for i in range(self.batch)})

    def advance(self, rolling: str, step: int) -> str:
        """The rolling hash after `step`: sha256 of the one before ("" at step 0) and the digest."""
        return chain(rolling, self.digest(step))

    def tokens(self, steps: int) -> int:
        """Positions, padding included, in the first `steps` steps."""
        return steps * self.batch * self.rows.length

    def unique_tokens(self, steps: int) -> int:
        """Positions of the corpus that the first `steps` steps show at least once."""
        return min(self.tokens(steps), self.rows.positions)

    def epoch_of(self, steps: int) -> float:
        """Epochs that the first `steps` steps go through."""
        return self.tokens(steps) / self.rows.positions

    def _row(self, step: int, place: int) -> Sequence[Piece]:
        return self.rows.row(step * self.batch + place)

    def _built(self, step: int, rows: dict[int, Sequence[Piece]]) -> Batch:
        examples = []
        for i in self._mine:
            bits = philox(self.seed, step * self.batch + i, EXAMPLES)
            pieces = [piece.tokens for piece in rows[i]]
            made = self._example(pieces, self.rows.length, np.random.Generator(bits))
            given = [piece.weights for piece in rows[i] if piece.weights is not None]
            if given:
                own = laid(given, len(made["weights"]), once=self._once)
                made |= {"weights": made["weights"] * own}
            examples.append(made)
        return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


class Joined:
    """Batches of several streams as one, their arrays under `name/`; counted by the first."""

    def __init__(self, parts: dict[str, Batches]):
        self.parts = parts
        first = next(iter(parts.values()))
        self.rows = first.rows
        self.tokens, self.unique_tokens = first.tokens, first.unique_tokens
        self.epoch_of = first.epoch_of

    def __len__(self) -> int:
        return min(map(len, self.parts.values()))

    def __getitem__(self, step: int) -> Batch:
        return _named({name: part[step] for name, part in self.parts.items()})

    def with_digest(self, step: int) -> tuple[Batch, str]:
        found = {name: part.with_digest(step) for name, part in self.parts.items()}
        digests = " ".join(digest for _, digest in found.values())
        whole = hashlib.sha256(digests.encode()).hexdigest()
        return _named({name: batch for name, (batch, _) in found.items()}), whole


def _named(batches: dict[str, Batch]) -> Batch:
    return {f"{part}/{n}": x for part, batch in batches.items() for n, x in batch.items()}


class ReadAhead:
    """Iterates over (step, batch, rolling hash); made by `read_ahead`.

    What a thread raises comes out of `next`, and nothing after it. `waited` is the time in seconds
    that the caller spent waiting for batches.
    """

    def __init__(self, built: Iterator[tuple[int, Batch, str]], rolling: str | None):
        self.waited = 0.0
        self._built = built
        self._rolling = rolling
        self._open = True

    def __iter__(self) -> "ReadAhead":
        return self

    def __next__(self) -> tuple[int, Batch, str | None]:
        if not self._open:
            raise StopIteration
        began = time.perf_counter()
        try:
            step, batch, digest = next(self._built)
        except BaseException:
            self.close()
            raise
        finally:
            self.waited += time.perf_counter() - began
        if self._rolling is not None:
            self._rolling = chain(self._rolling, digest)
        return step, batch, self._rolling

    def close(self) -> None:
        """Stop building; also done at the end and after an error."""
        if self._open:
            self._open = False
            self._built.close()  # type: ignore[attr-defined]

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Steps:
    """A range of steps as the random-access source that grain reads from."""

    def __init__(self, batches: Batches | Joined, start: int, stop: int | None, *, hashed: bool):
        self._batches = batches
        self._start = start
        last = None if batches.rows.endless else len(batches)
        stops = [s for s in (stop, last, start + (1 << 40)) if s is not None]
        self._length = max(0, min(stops) - start)
        self._hashed = hashed

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[int, Batch, str]:
        step = self._start + index
        if self._hashed:
            return step, *self._batches.with_digest(step)
        return step, self._batches[step], ""


def read_ahead(
    batches: Batches | Joined,
    start: int,
    stop: int | None = None,
    *,
    rolling: str | None = None,
    buffer: int = 8,
    threads: int = 1,
) -> ReadAhead:
    """Have threads build the batches of steps `start` to `stop`, up to `buffer` of them ahead.

    `rolling` is the hash before `start` ("" at step 0). None: no hashes, which on several hosts
    saves each of them reading the rows of the others.
    """
    import grain  # takes seconds, and only a loop needs it

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    steps = _Steps(batches, start, stop, hashed=rolling is not None)
    return ReadAhead(iter(grain.MapDataset.source(steps).to_iter_dataset(options)), rolling)


def windows(
    store: Store,
    batch: int,
    length: int,
    overlap: int,
    example: Example,
    *,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    """A whole split in order, every position once, the last batch padded; equal for all models."""
    packed = Packed(store, length, overlap)
    return Batches(packed, batch, example, 0, rank=rank, world=world, once=True)


def chain(rolling: str, digest: str) -> str:
    """One step of the rolling hash."""
    return hashlib.sha256(f"{rolling}{digest}".encode()).hexdigest()


def _digest(rows: dict[int, Sequence[Piece]]) -> str:
    state = hashlib.sha256()
    for pieces in rows.values():
        for piece in pieces:
            state.update(piece.tokens.astype("<i4").tobytes())
            if piece.weights is not None:
                state.update(piece.weights.astype("<f4").tobytes())
    return state.hexdigest()
