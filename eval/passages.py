"""Labelled pieces of the held-out embedded corpus, for probes: source, genre, era, book.

Works are cut into pieces of equal size, the same for every tokenizer and length of training. Its
valid and test parts together hold few works, so the labels of a probe are learnt on some stretches
of every work and judged on others: what is measured is how well pieces of known works are told
apart, not whether a new work of a genre would be.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data import corpus

BYTES = 256  # of a piece, or a little less: it ends where a character does
STRETCH = 4  # pieces that stay together, so that few have a neighbour in another part
PARTS = ("train", "train", "train", "valid", "test")  # of stretches in turn

GENRES = {
    **dict.fromkeys(("measure_for_measure", "twelfth_night"), "comedy"),
    **dict.fromkeys(("julius_caesar", "macbeth"), "tragedy"),
    **dict.fromkeys(("8", "17", "32", "44"), "narrative"),  # Ruth, Esther, Jonah, Acts
    "21": "wisdom",  # Ecclesiastes
    "43": "gospel",  # John
}
ERAS = ((1960, "to 1959"), (1990, "1960 to 1989"), (10_000, "from 1990"))  # of messages


class Piece(NamedTuple):
    text: str
    part: str  # of the probe's own split
    labels: dict[str, str]  # those that apply


def pieces(splits: tuple[str, ...]) -> list[Piece]:
    """Of all works of these splits of the corpus."""
    works: dict[tuple[str, str], list[str]] = {}
    for split in splits:
        for passage in corpus.passages(split):
            bible = passage.source == "bible"
            work = passage.name.split("-")[0] if bible else passage.name
            works.setdefault((passage.source, work), []).append(passage.text)
    return [
        Piece(text, PARTS[i // STRETCH % len(PARTS)], labels(*work))
        for work, texts in works.items()
        for i, text in enumerate(part for whole in texts for part in cut(whole, BYTES))
    ]


def labels(source: str, work: str) -> dict[str, str]:
    """What is known of a work."""
    known = {"source": source, "genre": GENRES.get(work, "address")}
    if source == "bible":
        known["book"] = work
    if source == "sotu":
        year = int(work.split("-")[0])
        known["era"] = next(name for end, name in ERAS if year < end)
    return known


def cut(text: str, size: int) -> Iterator[str]:
    """Consecutive pieces of at most `size` bytes of UTF-8; a short last one is left out."""
    raw, at = text.encode(), 0
    while len(raw) - at >= size:
        end = at + size
        while raw[end : end + 1] and raw[end] & 0xC0 == 0x80:  # within a character
            end -= 1
        yield raw[at:end].decode()
        at = end


def coded(names: list[str]) -> tuple[np.ndarray, int]:
    """Labels as numbers, and how many there are."""
    kinds, numbers = np.unique(names, return_inverse=True)
    return numbers, len(kinds)
