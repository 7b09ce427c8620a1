"""Batches rows of unequal length in a few shapes.

A row is padded to the next power of two. The padded length depends on nothing but the row, so
neither the batch size nor the other rows of a batch change a score beyond rounding. One program is
compiled per padded length.
"""

from collections.abc import Iterator

import numpy as np

from eval.progress import log_progress
from eval.task import EvalContext

MIN_LENGTH = 16  # Tokens of the shortest padded row.

RowArrays = dict[str, np.ndarray]


def bucketed_batches(
    ctx: EvalContext, rows: list[RowArrays]
) -> Iterator[tuple[list[int], RowArrays]]:
    """Yields batches as the indices of their rows and their arrays [batch, length].

    The arrays positions and segment_ids are added. A batch that has fewer rows than the batch size
    ends with rows of padding.
    """
    context_shards = ctx.mesh.shape["context"]
    n_devices = ctx.mesh.size
    batch_size = -(-ctx.settings.eval.batch_size // n_devices) * n_devices
    buckets: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        length = _bucket_length(len(row["tokens"]))
        buckets.setdefault(-(-length // context_shards) * context_shards, []).append(i)
    batches = [
        (length, indices[start : start + batch_size])
        for length, indices in sorted(buckets.items())
        for start in range(0, len(indices), batch_size)
    ]
    for length, indices in log_progress(batches, len(batches)):
        yield indices, _pad_rows([rows[i] for i in indices], batch_size, length)


def _bucket_length(length: int) -> int:
    return max(MIN_LENGTH, 1 << (length - 1).bit_length())


def _pad_rows(rows: list[RowArrays], batch_size: int, length: int) -> RowArrays:
    first = rows[0]
    out = {name: np.zeros((batch_size, length), first[name].dtype) for name in first}
    out |= {name: np.zeros((batch_size, length), np.int32) for name in ("positions", "segment_ids")}
    for i, row in enumerate(rows):
        n = len(row["tokens"])
        for name, values in row.items():
            out[name][i, :n] = values
        out["positions"][i, :n], out["segment_ids"][i, :n] = np.arange(n), 1
    return out
