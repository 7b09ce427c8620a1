"""Batches as a pure function of (seed, step), and a loader that builds them in advance.

Step s takes the rows s * batch_size to (s + 1) * batch_size - 1. Each of `world_size` hosts builds
its own contiguous share of them. Therefore the global batch does not depend on the number of hosts,
and a run resumes at any step without a saved iterator.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from data.loss_weights import row_weights
from data.packing import DocumentSlice
from data.random_streams import RandomStream, permutation, philox
from errors import ConfigError, DataError

HostBatch = dict[str, np.ndarray]
# An objective makes a row with a function (slices, length, generator) -> arrays [length] by name.
# Without slices it makes a row of padding.
RowFn = Callable[[list[np.ndarray], int, np.random.Generator], HostBatch]


class RowSource(Protocol):
    """A source of rows by number: `PackedRows`, `TextRows`, `ImageRows`, or a class like them."""

    row_length: int  # Positions in a row.
    epoch_length: int  # Positions in one epoch.
    unique_length: int  # Distinct positions of the corpus in one epoch.
    is_endless: bool  # Whether more rows follow the last one of an epoch.
    image_shape: tuple[int, ...] | None  # Shape of the image of each row; None: no images.

    def row(self, index: int) -> Sequence[DocumentSlice]:
        """Returns the slices of a row."""


class RepeatedRows:
    """The first rows of an endless source in its order, then again and again in new orders.

    Runs of another seed repeat other rows. Every epoch has the same rows, where a whole split is
    cut into new rows in each epoch.
    """

    def __init__(self, source: RowSource, n_rows: int, seed: int):
        """Sets up `n_rows` rows of `source`.

        Raises:
            DataError: if the source has fewer distinct rows.
        """
        self.row_length, self.image_shape = source.row_length, source.image_shape
        self.epoch_length = self.unique_length = n_rows * self.row_length
        self.is_endless = True
        if self.unique_length > source.unique_length:
            raise DataError(
                f"train.unique_tokens asks for {self.unique_length:,} distinct tokens, the "
                f"training split has {source.unique_length:,}; lower it, or set it to 0 for all"
            )
        self._source, self._n_rows, self._seed = source, n_rows, seed
        self._order = functools.lru_cache(maxsize=2)(self._permute)

    def row(self, index: int) -> Sequence[DocumentSlice]:
        """Returns the slices of a row."""
        epoch, rank = divmod(index, self._n_rows)
        return self._source.row(int(self._order(epoch)[rank]) if epoch else rank)

    def _permute(self, epoch: int) -> np.ndarray:
        return permutation(self._seed, epoch, RandomStream.REPEATS, self._n_rows)


class Batches:
    """Batches of rows: `batches[step]` is a dictionary of arrays.

    The arrays are those of `make_row`, stacked: [batch_size / world_size, ...].
    """

    def __init__(
        self,
        row_source: RowSource,
        batch_size: int,
        make_row: RowFn,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        binarize_weights: bool = False,
        row_numbers: np.ndarray | None = None,
    ):
        """Sets up the share of host `rank` of `world_size` hosts.

        With `binarize_weights` each weight becomes 0 or 1, as for evaluation. The batches have the
        rows `row_numbers` of one pass over the source, each as it is in the whole pass; None: all.

        Raises:
            ConfigError: if the batch does not divide among the hosts.
            DataError: if an epoch has fewer tokens than a batch.
        """
        if batch_size % world_size:
            nearest = max(batch_size // world_size, 1) * world_size
            raise ConfigError(
                f"a batch of {batch_size} sequences does not divide among {world_size} hosts; "
                f"nearest valid value: {nearest}"
            )
        batch_tokens = batch_size * row_source.row_length
        if row_source.is_endless and row_source.epoch_length < batch_tokens:
            raise DataError(
                f"one batch is {batch_size} x {row_source.row_length} = {batch_tokens} tokens, all "
                f"the training text is {row_source.epoch_length}; lower train.batch_size or "
                "train.seq_len, or add text"
            )
        self.row_source = row_source
        self.batch_size = batch_size
        self.seed = seed
        share = batch_size // world_size
        self._local_rows = range(rank * share, (rank + 1) * share)
        self._make_row, self._binarize_weights = make_row, binarize_weights
        self._row_numbers = row_numbers

    def __len__(self) -> int:
        """Returns the steps of one epoch; the last may have padding or rows of the next epoch."""
        if self._row_numbers is not None:
            return -(-len(self._row_numbers) // self.batch_size)
        return -(-self.row_source.epoch_length // (self.batch_size * self.row_source.row_length))

    def __getitem__(self, step: int) -> HostBatch:
        if step < 0 or (not self.row_source.is_endless and step >= len(self)):
            raise IndexError(f"step {step} of {len(self)}")
        return self._build(step, {i: self._read_row(step, i) for i in self._local_rows})

    def with_digest(self, step: int) -> tuple[HostBatch, str]:
        """Returns `self[step]` and `digest(step)`, and reads the rows only once."""
        rows = {i: self._read_row(step, i) for i in range(self.batch_size)}
        return self._build(step, rows), _hash_rows(rows)

    def digest(self, step: int) -> str:
        """Returns the sha256 of the tokens of the global batch, before `make_row`."""
        return _hash_rows({i: self._read_row(step, i) for i in range(self.batch_size)})

    def update_hash(self, data_hash: str, step: int) -> str:
        """Returns the rolling hash after `step`.

        It is the sha256 of the previous hash ("" at step 0) and the digest of the step.
        """
        return chain_hash(data_hash, self.digest(step))

    def count_tokens(self, steps: int) -> int:
        """Returns the number of positions, padding included, in the first `steps` steps."""
        return steps * self.batch_size * self.row_source.row_length

    def count_unique_tokens(self, steps: int) -> int:
        """Returns the number of distinct corpus positions in the first `steps` steps."""
        return min(self.count_tokens(steps), self.row_source.unique_length)

    def count_epochs(self, steps: int) -> float:
        """Returns the number of epochs in the first `steps` steps."""
        return self.count_tokens(steps) / self.row_source.epoch_length

    def _read_row(self, step: int, index: int) -> Sequence[DocumentSlice]:
        return self.row_source.row(self._row_number(step, index))

    def _row_number(self, step: int, index: int) -> int:
        """Returns the number of a row; after the last of `row_numbers`, one past the end."""
        position, numbers = step * self.batch_size + index, self._row_numbers
        if numbers is None:
            return position
        if position < len(numbers):
            return int(numbers[position])
        return -(-self.row_source.epoch_length // self.row_source.row_length)

    def _build(self, step: int, rows: dict[int, Sequence[DocumentSlice]]) -> HostBatch:
        examples = []
        for i in self._local_rows:
            bits = philox(self.seed, self._row_number(step, i), RandomStream.EXAMPLES)
            slices = [item.tokens for item in rows[i]]
            arrays = self._make_row(slices, self.row_source.row_length, np.random.Generator(bits))
            if "record" in arrays and rows[i]:
                arrays["record"] = np.asarray(rows[i][0].record, np.int32)
            slice_weights = [item.weights for item in rows[i] if item.weights is not None]
            if slice_weights:
                length = len(arrays["weights"])
                weights = row_weights(slice_weights, length, binarize=self._binarize_weights)
                arrays |= {"weights": arrays["weights"] * weights}
            if self.row_source.image_shape:
                images = [item.image for item in rows[i] if item.image is not None]
                blank = np.zeros(self.row_source.image_shape, np.uint8)
                arrays["images"] = images[0] if images else blank
            examples.append(arrays)
        return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


class MixtureBatches:
    """Batches of several streams with prefixes `name/`; tokens are counted in the first stream."""

    def __init__(self, parts: dict[str, Batches]):
        self.parts = parts
        first = next(iter(parts.values()))
        self.row_source = first.row_source
        self.count_tokens, self.count_unique_tokens = first.count_tokens, first.count_unique_tokens
        self.count_epochs = first.count_epochs

    def __len__(self) -> int:
        return min(map(len, self.parts.values()))

    def __getitem__(self, step: int) -> HostBatch:
        return _prefix_names({name: part[step] for name, part in self.parts.items()})

    def with_digest(self, step: int) -> tuple[HostBatch, str]:
        """Returns `self[step]` and a hash of the digests of all streams."""
        results = {name: part.with_digest(step) for name, part in self.parts.items()}
        digests = " ".join(digest for _, digest in results.values())
        joint_digest = hashlib.sha256(digests.encode()).hexdigest()
        batches = {name: batch for name, (batch, _) in results.items()}
        return _prefix_names(batches), joint_digest


def _prefix_names(batches: dict[str, HostBatch]) -> HostBatch:
    return {f"{part}/{n}": x for part, batch in batches.items() for n, x in batch.items()}


class ReadAhead:
    """Iterates over (step, batch, rolling hash); `read_ahead` makes it.

    If a thread raises an error, `next` raises it and the iteration ends. `wait_seconds` is the time
    that the caller waited for batches.
    """

    def __init__(self, batches: Iterator[tuple[int, HostBatch, str]], data_hash: str | None):
        self.wait_seconds = 0.0
        self._batches = batches
        self._data_hash = data_hash
        self._is_open = True

    def __iter__(self) -> "ReadAhead":
        return self

    def __next__(self) -> tuple[int, HostBatch, str | None]:
        if not self._is_open:
            raise StopIteration
        start = time.perf_counter()
        try:
            step, batch, digest = next(self._batches)
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - start
        if self._data_hash is not None:
            self._data_hash = chain_hash(self._data_hash, digest)
        return step, batch, self._data_hash

    def close(self) -> None:
        """Stops building; the end of the iteration and an error do so too."""
        if self._is_open:
            self._is_open = False
            self._batches.close()  # type: ignore[attr-defined]

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _StepRange:
    """A range of steps as the random-access source from which grain reads."""

    def __init__(
        self, batches: Batches | MixtureBatches, start: int, stop: int | None, *, with_digest: bool
    ):
        self._batches = batches
        self._start = start
        end = None if batches.row_source.is_endless else len(batches)
        stops = [s for s in (stop, end, start + (1 << 40)) if s is not None]
        self._length = max(0, min(stops) - start)
        self._with_digest = with_digest

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[int, HostBatch, str]:
        step = self._start + index
        if self._with_digest:
            return step, *self._batches.with_digest(step)
        return step, self._batches[step], ""


def read_ahead(
    batches: Batches | MixtureBatches,
    start: int,
    stop: int | None = None,
    *,
    data_hash: str | None = None,
    buffer_size: int = 8,
    num_threads: int = 1,
) -> ReadAhead:
    """Lets threads build the batches of steps `start` to `stop`, up to `buffer_size` in advance.

    Args:
        batches: The batches to build.
        start: The first step.
        stop: The step after the last one; None: all.
        data_hash: The rolling hash before `start` ("" at step 0). None: no hashes are computed,
            so that on several hosts no host reads the rows of the others.
        buffer_size: Maximum number of finished batches that wait.
        num_threads: Number of threads.
    """
    import grain  # The import takes seconds, and only a training loop needs it.

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer_size)
    steps = _StepRange(batches, start, stop, with_digest=data_hash is not None)
    return ReadAhead(iter(grain.MapDataset.source(steps).to_iter_dataset(options)), data_hash)


def eval_batches(
    row_source: RowSource,
    batch_size: int,
    make_row: RowFn,
    *,
    rank: int = 0,
    world_size: int = 1,
    windows: np.ndarray | None = None,
) -> Batches:
    """Returns batches of one pass over a split in order, the last batch padded.

    They have the rows `windows`, by their number in the whole split; None: all.
    """
    return Batches(
        *(row_source, batch_size, make_row, 0),
        rank=rank,
        world_size=world_size,
        binarize_weights=True,
        row_numbers=windows,
    )


def chain_hash(data_hash: str, digest: str) -> str:
    """Returns the rolling hash after one more step with `digest`."""
    return hashlib.sha256(f"{data_hash}{digest}".encode()).hexdigest()


def _hash_rows(rows: dict[int, Sequence[DocumentSlice]]) -> str:
    state = hashlib.sha256()
    for slices in rows.values():
        for item in slices:
            state.update(item.tokens.astype("<i4").tobytes())
            if item.weights is not None:
                state.update(item.weights.astype("<f4").tobytes())
            if item.image is not None:
                state.update(item.image.tobytes())
    return state.hexdigest()
