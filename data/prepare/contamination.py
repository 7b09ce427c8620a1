"""What evaluation sets hold too, found by n words in a row (Brown et al., arXiv:2005.14165, C).

An item is a line of JSON, of which each text is searched by itself, or a paragraph of a text file.
A text shorter than n words counts as one n-gram if it has at least `shortest` words, below which a
match would mean nothing. A document with one match is dropped whole. Left out on purpose: the
paper's cutting of 200 characters around a match, and its tolerance for n-grams met in more than
ten documents; what an item drops is counted, so that a phrase that everyone uses is seen.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from data import fetch, files
from data.prepare.words import Hashes, hashes, ngrams, words
from data.progress import progress
from errors import DataError

FETCHED = "fetched"  # stands for what `python -m data.fetch evals` got
JSON = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True)
class Evals:
    """N-grams of evaluation items, by their length: sorted hashes and the first item with each."""

    items: tuple[str, ...]  # FILE:NUMBER, counted from 1
    short: int  # items of which nothing could be searched
    tables: dict[int, tuple[Hashes, Int32[np.ndarray, " N"]]]

    def hits(self, text: list[str], codes: Hashes) -> dict[str, dict[str, Any]]:
        """By item, how many n-grams of the text it has, and the first of these."""
        found: dict[str, dict[str, Any]] = {}
        for n, (known, owners) in self.tables.items():
            grams = ngrams(codes, n)
            places = np.minimum(np.searchsorted(known, grams), len(known) - 1)
            for i in np.flatnonzero(known[places] == grams):
                item = self.items[owners[places[i]]]
                first = {"ngrams": 0, "words": " ".join(text[i : i + n])}
                found.setdefault(item, first)["ngrams"] += 1
        return found


def read(spec: str, n: int, shortest: int, cache: str) -> Evals:
    """Items of the files that `spec` names, by commas; `fetched` for those of data.fetch."""
    items: list[str] = []
    grams: dict[int, list[tuple[Hashes, int]]] = {}
    short = 0
    with progress("reading evaluation items", 0) as show:
        for name, texts in _items(spec, cache):
            found = False
            for text in texts:
                codes = hashes(words(text))
                length = min(n, len(codes))
                if length >= min(n, shortest):
                    found = True
                    grams.setdefault(length, []).append((ngrams(codes, length), len(items)))
            items.append(name)
            short += not found
            if len(items) % 1000 == 0:
                show(0, f"{len(items):,} items")
    if not grams:
        raise DataError(
            f"--evals={spec}: none of {len(items)} items has {min(n, shortest)} words in a text; "
            "lower --shortest or give other files"
        )
    return Evals(tuple(items), short, {length: _table(grams[length]) for length in sorted(grams)})


def _table(grams: list[tuple[Hashes, int]]) -> tuple[Hashes, Int32[np.ndarray, " N"]]:
    owners = np.concatenate([np.full(len(own), item, np.int32) for own, item in grams])
    known, first = np.unique(np.concatenate([own for own, _ in grams]), return_index=True)
    return known, owners[first]


def _items(spec: str, cache: str) -> Iterator[tuple[str, list[str]]]:
    names = [name.strip() for name in spec.split(",")]
    if FETCHED in names:
        for file in fetch.WHEELS["evals"].files:
            for number, line in enumerate(fetch.read("evals", file, cache).split("\n"), 1):
                if line.strip():
                    yield f"{file}:{number}", _strings(line, f"{file}:{number}")
    policy = files.Policy("strict", "evals", files.Tally(), prefix="--")
    for path in files.expand(spec) if FETCHED not in names else _others(names):
        lines = any(suffix in JSON for suffix in path.suffixes)
        for number, text in enumerate(_parts(path, lines, policy), 1):
            where = f"{path}:{number}"
            yield where, _strings(text, where) if lines else [text]


def _others(names: list[str]) -> list[Path]:
    rest = ",".join(name for name in names if name not in ("", FETCHED))
    return files.expand(rest) if rest else []


def _parts(path: Path, lines: bool, policy: files.Policy) -> Iterator[str]:
    """Lines of JSON, or paragraphs: what empty lines separate."""
    paragraph: list[str] = []
    for _, line in files.texts(path, b"\n", policy):
        if lines and line.strip():
            yield line
        elif line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _strings(line: str, where: str) -> list[str]:
    """All texts that a line of JSON holds, keys left out."""
    try:
        waiting = [json.loads(line)]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}); mend it or leave the file out") from error
    found = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, (list, dict)):
            waiting += value.values() if isinstance(value, dict) else value
    return found
