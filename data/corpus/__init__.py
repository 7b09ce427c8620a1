"""The embedded corpus pd-english-v1: 12.9 MB of public-domain English with fixed splits.

Shakespeare's works and State of the Union messages are documents as stored; the World English Bible
is a document per chapter, its verses on lines, and with Young's Literal Translation a pair per
verse. Rights and attribution stand in NOTICE.
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


class Passage(NamedTuple):
    source: str  # shakespeare, sotu, bible
    name: str  # of the work or message; BOOK-CHAPTER by number for the Bible
    text: str


def passages(split: str) -> Iterator[Passage]:
    """The documents of `split` ("train", "valid" or "test"), in a fixed order."""
    for line in _lines(f"lm_{split}.jsonl.xz"):
        record = json.loads(line)
        yield Passage(record["source"], record["doc"], record["text"])
    rows = (line.split("\t") for line in _lines("bible_web_ylt.tsv.xz"))
    verses = ((int(verse), web) for name, verse, web, _ in rows if name == split)
    for chapter, group in groupby(verses, lambda verse: verse[0] // 1000):
        name = f"{chapter // 1000}-{chapter % 1000}"
        yield Passage("bible", name, "\n".join(web for _, web in group))


def pairs(split: str, neighbours: int = 0) -> Iterator[tuple[str, ...]]:
    """Each verse of `split` in the World English Bible and in Young's Literal Translation, then in
    the latter so many verses before it and after it, as far as its chapter goes."""
    rows = (row.split("\t") for row in _lines("bible_web_ylt.tsv.xz"))
    verses = (row for row in rows if row[0] == split)
    for _, group in groupby(verses, lambda row: int(row[1]) // 1000):
        chapter = [(web, literal) for _, _, web, literal in group]
        for i, (web, literal) in enumerate(chapter):
            around = chapter[max(i - neighbours, 0) : i] + chapter[i + 1 : i + 1 + neighbours]
            yield web, literal, *(other for _, other in around)


def sums() -> dict[str, str]:
    """The sha256 of every file of the corpus, as published with it."""
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in map(str.split, lines)}


def _lines(name: str) -> list[str]:
    """The lines of one file, split at line feeds only (the texts hold other line breaks)."""
    packed = (FOLDER / name).read_bytes()
    if hashlib.sha256(packed).hexdigest() != sums()[name]:
        raise DataError(f"{FOLDER / name} is damaged (sha256 differs); install the project again")
    return lzma.decompress(packed).decode().removesuffix("\n").split("\n")
