"""Random numbers as functions of (seed, index, stream), with a stream for each purpose.

They are the same under every version of numpy.
"""

import enum

import numpy as np


@enum.unique
class RandomStream(enum.IntEnum):
    """What random numbers are for; orders of data follow from its value, so it never changes."""

    DOCUMENTS = 1  # The order of the documents of an epoch.
    ROWS = 2  # The order of the rows of an epoch.
    EXAMPLES = 3  # The content of a row, such as what is masked.
    RETRIEVAL = 4  # The order of the pairs that retrieval evaluates.
    EVAL_BLOCKS = 5  # The order of the blocks of a split, of which `eval.limit` takes the first.
    DRAWINGS = 6  # The images of `data.source=digits`.
    GROUPS = 7  # The order in which the documents of a group repeat within an epoch.
    REPEATS = 8  # The order in which `train.unique_tokens` repeats rows.
    IMAGE_PROBE = 9  # The choice of records for the probe of image features.
    MEMORY_BANK = 10  # The choice of rows of a memory bank.


def permutation(seed: int, index: int, stream: RandomStream, size: int) -> np.ndarray:
    """Returns a permutation [size], the order of the outputs of Philox."""
    return np.argsort(philox(seed, index, stream).random_raw(size), kind="stable")


def philox(seed: int, index: int, stream: RandomStream) -> np.random.Philox:
    """Returns a bit generator that depends on the arguments alone (Salmon et al., 2011)."""
    return np.random.Philox(counter=(0, 0, 0, int(stream)), key=(seed, index))
