"""Batches rows of unequal length in a few shapes.

A row is padded to the next power of two. The padded length depends on nothing but the row, so
neither the batch size nor the other rows of a batch change a score beyond rounding. One program is
compiled per padded length. The source of an encoder-decoder has a padded length of its own.
"""

from collections.abc import Iterator

import numpy as np

from eval.progress import log_progress
from eval.task import EvalContext

MIN_LENGTH = 16  # Tokens of the shortest padded row.
SOURCE_PREFIX = "source_"  # Begins the names of what an encoder reads.

RowArrays = dict[str, np.ndarray]


def bucketed_batches(
    ctx: EvalContext, rows: list[RowArrays]
) -> Iterator[tuple[list[int], RowArrays]]:
    """Yields batches as the indices of their rows and their arrays [batch, length].

    The arrays positions and segment_ids are added, and those of the source where rows have
    `source_tokens`. A batch that has fewer rows than the batch size ends with rows of padding.
    """
    context_shards = ctx.mesh.shape["context"]
    n_devices = ctx.mesh.size
    batch_size = -(-ctx.settings.eval.batch_size // n_devices) * n_devices
    buckets: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        lengths = [_bucket_length(len(row[p + "tokens"])) for p in _prefixes(row)]
        shape = tuple(-(-length // context_shards) * context_shards for length in lengths)
        buckets.setdefault(shape, []).append(i)
    batches = [
        (shape, indices[start : start + batch_size])
        for shape, indices in sorted(buckets.items())
        for start in range(0, len(indices), batch_size)
    ]
    for shape, indices in log_progress(batches, len(batches)):
        yield indices, _pad_rows([rows[i] for i in indices], batch_size, shape)


def _prefixes(row: RowArrays) -> tuple[str, ...]:
    """Returns the prefixes of the names of a row's arrays, one for each of its token rows."""
    return ("", SOURCE_PREFIX) if SOURCE_PREFIX + "tokens" in row else ("",)


def _bucket_length(length: int) -> int:
    return max(MIN_LENGTH, 1 << (length - 1).bit_length())


def _pad_rows(rows: list[RowArrays], batch_size: int, shape: tuple[int, ...]) -> RowArrays:
    out: RowArrays = {}
    for prefix, length in zip(_prefixes(rows[0]), shape, strict=True):
        names = [n for n in rows[0] if n.startswith(SOURCE_PREFIX) == bool(prefix)]
        positions, segment_ids = (np.zeros((batch_size, length), np.int32) for _ in range(2))
        out |= {name: np.zeros((batch_size, length), rows[0][name].dtype) for name in names}
        out |= {f"{prefix}positions": positions, f"{prefix}segment_ids": segment_ids}
        for i, row in enumerate(rows):
            n = len(row[f"{prefix}tokens"])
            for name in names:
                out[name][i, :n] = row[name]
            positions[i, :n], segment_ids[i, :n] = np.arange(n), 1
    return out
