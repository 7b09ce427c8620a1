"""Counts of the groups of a token store, and the file with the group of each document.

`groups.bin` has an int32 for each document, the number of its group in the index. The index has the
documents, tokens and bytes of text of each group, by name.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from errors import DataError
from settings.json_types import JsonObject

GROUPS_FILE = "groups.bin"
COUNTS = ("documents", "tokens", "text_bytes")


class GroupCounts:
    """Counts the documents, tokens and bytes of each group, in the order in which they appear."""

    def __init__(self) -> None:
        self.by_name: dict[str, dict[str, int]] = {}

    def add(
        self, documents: Sequence[np.ndarray], text_bytes: Sequence[int], groups: Sequence[str]
    ) -> np.ndarray:
        """Counts documents, and returns the numbers of the groups of those that are not empty."""
        names = []
        for ids, size, name in zip(documents, text_bytes, groups, strict=True):
            if len(ids):
                counts = self.by_name.setdefault(name, dict.fromkeys(COUNTS, 0))
                for key, count in zip(COUNTS, (1, len(ids), size), strict=True):
                    counts[key] += count
                names.append(name)
        numbers = {name: number for number, name in enumerate(self.by_name)}
        return np.array([numbers[name] for name in names], "<i4")


def open_groups(folder: Path, index: JsonObject) -> np.ndarray | None:
    """Returns the group of each document of a store as a number, None if it has no groups.

    Raises:
        DataError: if the file does not fit the index.
    """
    if GROUPS_FILE not in index["files"]:
        return None
    groups = np.asarray(np.memmap(folder / GROUPS_FILE, "<i4", "r"))
    n_names = len(index["groups"])
    if len(groups) != index["documents"] or groups.min() < 0 or groups.max() >= n_names:
        raise DataError(
            f"{folder / GROUPS_FILE} does not give each of {index['documents']} documents one of "
            f"{n_names} groups; rebuild the store"
        )
    return groups
