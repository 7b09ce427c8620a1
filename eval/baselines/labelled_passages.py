"""Provides labelled passages of the embedded held-out corpus: source, genre, era, book, year.

Works are split into passages of equal size, the same for all tokenizers and training lengths. The
valid and test splits together contain few works. Labels are therefore learned on some blocks of
every work and evaluated on others. This measures how well passages of known works are
distinguished, not whether a new work would be assigned to its genre.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data import corpus

# Size of a passage; it is up to 3 bytes smaller where it would end within a character.
PASSAGE_BYTES = 256
# Passages of a block stay together, so that few have a neighbor in another part of the split.
PASSAGES_PER_BLOCK = 4
BLOCK_SPLITS = ("train", "train", "train", "valid", "test")  # Parts of consecutive blocks.

GENRES = {
    **dict.fromkeys(("measure_for_measure", "twelfth_night"), "comedy"),
    **dict.fromkeys(("julius_caesar", "macbeth"), "tragedy"),
    **dict.fromkeys(("8", "17", "32", "44"), "narrative"),  # Ruth, Esther, Jonah, Acts
    "21": "wisdom",  # Ecclesiastes
    "43": "gospel",  # John
}
ERAS = (
    (1960, "to 1959"),
    (1990, "1960 to 1989"),
    (10_000, "from 1990"),
)  # Eras of addresses, by the first year after each era.


class LabelledPassage(NamedTuple):
    """Holds one passage with its labels."""

    text: str
    probe_split: str  # Part of the probe's own split: train, valid or test.
    labels: dict[str, str]  # Only the labels that apply to the work.


def load_passages(splits: tuple[str, ...]) -> list[LabelledPassage]:
    """Returns the passages of all works in these splits of the corpus."""
    works: dict[tuple[str, str], list[str]] = {}
    for split in splits:
        for document in corpus.iter_documents(split):
            is_bible = document.source == "bible"
            work = document.name.split("-")[0] if is_bible else document.name
            works.setdefault((document.source, work), []).append(document.text)
    return [
        LabelledPassage(
            passage, BLOCK_SPLITS[i // PASSAGES_PER_BLOCK % len(BLOCK_SPLITS)], work_labels(*work)
        )
        for work, texts in works.items()
        for i, passage in enumerate(
            passage for text in texts for passage in split_text(text, PASSAGE_BYTES)
        )
    ]


def work_labels(source: str, work: str) -> dict[str, str]:
    """Returns the labels of a work by kind: a Bible has books, an address has an era and a year."""
    labels = {"source": source, "genre": GENRES.get(work, "address")}
    if source == "bible":
        labels["book"] = work
    if source == "sotu":
        year = int(work.split("-")[0])
        labels["year"] = str(year)
        labels["era"] = next(name for end, name in ERAS if year < end)
    return labels


def split_text(text: str, max_bytes: int) -> Iterator[str]:
    """Yields consecutive passages of at most `max_bytes` bytes of UTF-8.

    A last passage that is shorter is left out.
    """
    data, start = text.encode(), 0
    while len(data) - start >= max_bytes:
        end = start + max_bytes
        while data[end : end + 1] and data[end] & 0xC0 == 0x80:  # `end` is within a character.
            end -= 1
        yield data[start:end].decode()
        start = end


def encode_labels(label_names: list[str]) -> tuple[np.ndarray, int]:
    """Returns the labels as class indices, and the number of classes."""
    classes, indices = np.unique(label_names, return_inverse=True)
    return indices, len(classes)
