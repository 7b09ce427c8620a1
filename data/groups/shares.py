"""The documents of an epoch in which groups have the shares of a temperature."""

import numpy as np

from data.random_streams import RandomStream, permutation


def epoch_documents(
    lengths: np.ndarray,
    groups: np.ndarray,
    temperature: float,
) -> np.ndarray:
    """Returns the documents of an epoch, some perhaps several times.

    A group of n positions has a share in proportion to n^(1/temperature) (XLM-R, arXiv:1911.02116,
    section 3, with alpha = 1/temperature). Each document of the largest group appears once. A
    document of another group appears as often as its share needs, rounded up for some documents and
    down for others.

    Args:
        lengths: the positions of each document.
        groups: the group of each document.
        temperature: the temperature, at least 1.
    """
    sizes = np.bincount(groups, lengths)
    repeats = np.ones(len(sizes))
    np.divide(sizes ** (1 / temperature), sizes, out=repeats, where=sizes > 0)
    repeats /= repeats[np.argmax(sizes)]
    counts = np.floor(repeats[groups]).astype(int)
    for group, n_positions in enumerate(sizes):
        members = np.flatnonzero(groups == group)
        members = members[permutation(0, group, RandomStream.GROUPS, len(members))]
        # The first documents whose positions make up for the fraction appear once more.
        missing = (repeats[group] - np.floor(repeats[group])) * n_positions
        ends = np.cumsum(lengths[members])
        counts[members[ends - lengths[members] / 2 <= missing]] += 1
    return np.repeat(np.arange(len(lengths)), counts)
