"""The embedded corpus pd-english-v1: 12.9 MB of public-domain English with fixed splits.

Shakespeare's works and the State of the Union messages are documents as stored. In the World
English Bible each chapter is a document, with one verse per line. Each of its verses forms a text
pair with the same verse of Young's Literal Translation. NOTICE has rights and attribution.
"""

import hashlib
import json
import lzma
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from errors import DataError

FOLDER = Path(__file__).parent
NAME = "pd-english-v1"


class CorpusDocument(NamedTuple):
    """A document of the corpus."""

    source: str  # shakespeare, sotu or bible
    name: str  # Name of the work or message; BOOK-CHAPTER in numbers for the Bible.
    text: str


def iter_documents(split: str) -> Iterator[CorpusDocument]:
    """Yields the documents of `split` ("train", "valid" or "test") in a fixed order."""
    for line in _read_lines(f"lm_{split}.jsonl.xz"):
        record = json.loads(line)
        yield CorpusDocument(record["source"], record["doc"], record["text"])
    rows = (line.split("\t") for line in _read_lines("bible_web_ylt.tsv.xz"))
    verses = ((int(verse), web) for name, verse, web, _ in rows if name == split)
    for chapter, group in groupby(verses, lambda verse: verse[0] // 1000):
        name = f"{chapter // 1000}-{chapter % 1000}"
        yield CorpusDocument("bible", name, "\n".join(web for _, web in group))


def iter_text_pairs(split: str, adjacent_negatives: int = 0) -> Iterator[tuple[str, ...]]:
    """Yields a text pair for each verse of `split`.

    The texts are the verse in the World English Bible, the verse in Young's Literal Translation,
    and in the latter `adjacent_negatives` verses before it and after it, within its chapter.
    """
    rows = (row.split("\t") for row in _read_lines("bible_web_ylt.tsv.xz"))
    verses = (row for row in rows if row[0] == split)
    n = adjacent_negatives
    for _, group in groupby(verses, lambda row: int(row[1]) // 1000):
        chapter = [(web, literal) for _, _, web, literal in group]
        for i, (web, literal) in enumerate(chapter):
            neighbors = chapter[max(i - n, 0) : i] + chapter[i + 1 : i + 1 + n]
            yield web, literal, *(neighbor for _, neighbor in neighbors)


def checksums() -> dict[str, str]:
    """Returns the published sha256 of every file of the corpus."""
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in map(str.split, lines)}


def _read_lines(name: str) -> list[str]:
    """Returns the lines of one file, split at line feeds only (texts have other line breaks).

    Raises:
        DataError: if the file is damaged.
    """
    compressed = (FOLDER / name).read_bytes()
    if hashlib.sha256(compressed).hexdigest() != checksums()[name]:
        raise DataError(f"{FOLDER / name} is damaged (sha256 differs); install the project again")
    return lzma.decompress(compressed).decode().removesuffix("\n").split("\n")
