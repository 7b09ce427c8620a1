"""Contamination filter: drops documents that share n consecutive words with an evaluation set.

The method is that of GPT-3 (Brown et al., arXiv:2005.14165, appendix C). An item is a line of JSON,
of which each text is compared by itself, or a paragraph of a text file. A text shorter than n words
is one n-gram if it has at least `min_words` words; a match of a shorter text would mean nothing.
One match drops the complete document. Two parts of the paper are left out on purpose: cutting 200
characters around a match, and ignoring n-grams that occur in more than ten documents. Instead the
report counts the documents that each item drops, so that a common phrase is visible.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from data import fetch
from data.prepare.words import Hashes, find_words, hash_ngrams, hash_text, iter_ngrams
from data.progress import progress
from data.readers import input_files, read_policy, read_stats, text_files
from data.readers.suffixes import JSON_LINES_SUFFIXES, suffix_of
from errors import DataError
from settings.json_types import JsonObject

FETCHED_EVALS = "fetched"  # Stands for the files of `python -m data.fetch evals`.
JSON_SUFFIXES = (".json", *JSON_LINES_SUFFIXES)


@dataclass(frozen=True)
class EvalNgrams:
    """N-grams of evaluation items, by length."""

    items: tuple[str, ...]  # FILE:NUMBER, counted from 1.
    n_too_short: int  # Number of items without a text that is long enough.
    # Length of n-grams -> their sorted hashes, and the index of the first item with each.
    ngram_tables: dict[int, tuple[Hashes, Int32[np.ndarray, " N"]]]

    def find_matches(self, text: str, word_hashes: Hashes) -> dict[str, JsonObject]:
        """Returns, by item, how many of its n-grams a text has, and the first one.

        Args:
            text: The text.
            word_hashes: The hashes of its words (`words.hash_text`).
        """
        matches: dict[str, JsonObject] = {}
        for n, (hashes, item_indices) in self.ngram_tables.items():
            for start, ngrams in iter_ngrams(word_hashes, n):
                indices = np.minimum(np.searchsorted(hashes, ngrams), len(hashes) - 1)
                for i in np.flatnonzero(hashes[indices] == ngrams).tolist():
                    item = self.items[item_indices[indices[i]]]
                    if item not in matches:
                        words = find_words(text, start + i, start + i + n)
                        matches[item] = {"ngrams": 0, "words": " ".join(words)}
                    matches[item]["ngrams"] += 1
        return matches


def read_eval_ngrams(spec: str, n: int, min_words: int, cache: str) -> EvalNgrams:
    """Reads the n-grams of the files in `spec`, separated by commas.

    `fetched` stands for the files of data.fetch.

    Raises:
        DataError: if no item has a text of `min_words` words.
    """
    items: list[str] = []
    ngrams: dict[int, list[tuple[Hashes, int]]] = {}
    n_too_short = 0
    with progress("reading evaluation items", 0) as show:
        for name, texts in _iter_items(spec, cache):
            is_too_short = True
            for text in texts:
                hashes = hash_text(text)
                length = min(n, len(hashes))
                if length >= min(n, min_words):
                    is_too_short = False
                    ngrams.setdefault(length, []).append((hash_ngrams(hashes, length), len(items)))
            items.append(name)
            n_too_short += is_too_short
            if len(items) % 1000 == 0:
                show(0, f"{len(items):,} items")
    if not ngrams:
        raise DataError(
            f"--evals={spec}: none of {len(items)} items has {min(n, min_words)} words in a text; "
            "lower --min_words or use other files"
        )
    tables = {length: _build_table(ngrams[length]) for length in sorted(ngrams)}
    return EvalNgrams(tuple(items), n_too_short, tables)


def find_eval_files(spec: str) -> list[Path]:
    """Returns the files in `spec`, without those of data.fetch."""
    names = [name.strip() for name in spec.split(",")]
    if FETCHED_EVALS in names:
        spec = ",".join(name for name in names if name != FETCHED_EVALS)
    return input_files.find_files(spec, "--evals").paths if spec.strip(", ") else []


def _build_table(ngrams: list[tuple[Hashes, int]]) -> tuple[Hashes, Int32[np.ndarray, " N"]]:
    item_indices = np.concatenate([np.full(len(hashes), i, np.int32) for hashes, i in ngrams])
    unique, first = np.unique(np.concatenate([hashes for hashes, _ in ngrams]), return_index=True)
    return unique, item_indices[first]


def _iter_items(spec: str, cache: str) -> Iterator[tuple[str, list[str]]]:
    names = [name.strip() for name in spec.split(",")]
    if FETCHED_EVALS in names:
        for file in fetch.WHEELS["evals"].files:
            for number, line in enumerate(fetch.read_file("evals", file, cache).split("\n"), 1):
                if line.strip():
                    yield f"{file}:{number}", _collect_strings(line, f"{file}:{number}")
    policy = read_policy.ErrorPolicy("strict", "evals", read_stats.ReadStats(), setting_prefix="--")
    for path in find_eval_files(spec):
        is_json = suffix_of(path) in JSON_SUFFIXES
        for number, text in enumerate(_iter_entries(path, is_json, policy), 1):
            location = f"{path}:{number}"
            yield location, _collect_strings(text, location) if is_json else [text]


def _iter_entries(path: Path, is_json: bool, policy: read_policy.ErrorPolicy) -> Iterator[str]:
    """Yields the lines of a JSON file, or the paragraphs of a text file."""
    paragraph: list[str] = []
    for _, line in text_files.iter_texts(path, b"\n", policy):
        if is_json and line.strip():
            yield line
        elif line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _collect_strings(line: str, location: str) -> list[str]:
    """Returns all strings in a line of JSON except keys.

    Raises:
        DataError: if the line is not JSON.
    """
    try:
        stack = [json.loads(line)]
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{location} is not JSON ({error}); correct it or exclude the file"
        ) from error
    strings = []
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            strings.append(value)
        elif isinstance(value, (list, dict)):
            stack += value.values() if isinstance(value, dict) else value
    return strings
