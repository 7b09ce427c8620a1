"""Rows of unequal length as batches of a few shapes.

A row is padded to the next power of two, which depends on nothing but the row: neither the batch it
falls into nor its size changes a score beyond rounding, and a program is compiled per width.
"""

from collections.abc import Iterator

import numpy as np

from eval.task import Subject

LEAST = 16  # tokens of the shortest batch

Row = dict[str, np.ndarray]


def batches(subject: Subject, rows: list[Row]) -> Iterator[tuple[list[int], Row]]:
    """Numbers of rows, and their arrays [batch, width] with positions and segments; what is too
    much of a batch is padding."""
    shape = subject.mesh.shape
    ways, cut = subject.mesh.size, shape["context"]
    count = -(-subject.settings.eval.batch // ways) * ways
    by_width: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_width.setdefault(-(-_width(len(row["tokens"])) // cut) * cut, []).append(i)
    for width, own in sorted(by_width.items()):
        for at in range(0, len(own), count):
            some = own[at : at + count]
            yield some, _stacked([rows[i] for i in some], count, width)


def _width(length: int) -> int:
    return max(LEAST, 1 << (length - 1).bit_length())


def _stacked(rows: list[Row], count: int, width: int) -> Row:
    first = rows[0]
    out = {name: np.zeros((count, width), first[name].dtype) for name in first}
    out |= {name: np.zeros((count, width), np.int32) for name in ("positions", "segments")}
    for i, row in enumerate(rows):
        n = len(row["tokens"])
        for name, values in row.items():
            out[name][i, :n] = values
        out["positions"][i, :n], out["segments"][i, :n] = np.arange(n), 1
    return out
