"""Toxicity filter: a list of words and phrases that the user provides; the project has none.

A word list does not consider context. It also drops texts about its subjects, and dialects for
which it was not made (Dodge et al., arXiv:2104.08758, section 5). Read dropped.jsonl before you
rely on a list.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data import text_files
from data.prepare.words import split_words
from errors import DataError
from settings.json_types import JsonObject


@dataclass(frozen=True)
class WordList:
    """A word list matches texts with enough listed phrases.

    A text must have at least `min_count` phrases with at least `min_share` of its words.
    """

    phrases: Mapping[str, frozenset[tuple[str, ...]]]  # By first word.
    min_count: int
    min_share: float

    def find_phrases(self, words: list[str]) -> JsonObject | None:
        """Returns the phrases in a dropped text and their share of its words, or None."""
        counts: dict[str, int] = {}
        matched_words = i = 0
        while i < len(words):
            candidates = self.phrases.get(words[i], ())
            lengths = [len(p) for p in candidates if tuple(words[i : i + len(p)]) == p]
            length = max(lengths, default=0)  # Only the longest phrase is counted.
            if length:
                phrase = " ".join(words[i : i + length])
                counts[phrase] = counts.get(phrase, 0) + 1
            matched_words += length
            i += max(1, length)
        is_frequent = sum(counts.values()) >= self.min_count
        if not counts or not is_frequent or matched_words < self.min_share * len(words):
            return None
        return {"phrases": dict(sorted(counts.items())), "share": matched_words / len(words)}


def read_word_list(path: str, min_count: int, min_share: float) -> WordList:
    """Reads a list from text files with one word or phrase per line, plain or compressed.

    Raises:
        DataError: if the files have no word.
    """
    phrases: dict[str, set[tuple[str, ...]]] = {}
    policy = text_files.ErrorPolicy("strict", "list", text_files.ReadStats(), setting_prefix="--")
    for file in text_files.expand_globs(path):
        _read_into(phrases, file, policy)
    if not phrases:
        raise DataError(f"{path} lists no word; use a text file with one word or phrase per line")
    by_first_word = {first: frozenset(group) for first, group in phrases.items()}
    return WordList(by_first_word, min_count, min_share)


def _read_into(phrases: dict[str, set], path: Path, policy: text_files.ErrorPolicy) -> None:
    for _, line in text_files.iter_texts(path, b"\n", policy):
        if phrase := tuple(split_words(line)):
            phrases.setdefault(phrase[0], set()).add(phrase)
