"""Toxicity filter: a list of words and phrases that the user provides; the project has none.

A word list does not consider context. It also drops texts about its subjects, and dialects for
which it was not made (Dodge et al., arXiv:2104.08758, section 5). Read dropped.jsonl before you
rely on a list.
"""

from dataclasses import dataclass

import numpy as np

from data.prepare.words import Hashes, hash_words, split_words
from data.readers import input_files, read_policy, read_stats, text_files
from errors import DataError
from settings.json_types import JsonObject


@dataclass(frozen=True)
class WordList:
    """A word list matches texts with enough listed phrases.

    A text must have at least `min_count` phrases with at least `min_share` of its words.
    """

    phrases: dict[int, list[list[str]]]  # By the hash of the first word, the longest first.
    min_count: int
    min_share: float

    def find_phrases(self, word_hashes: Hashes) -> JsonObject | None:
        """Returns the phrases in a dropped text and their share of its words, or None.

        Args:
            word_hashes: The hashes of the words of a text (`words.hash_text`).
        """
        counts: dict[str, int] = {}
        matched_words = end = 0
        for i in self._find_first_words(word_hashes):
            if i < end:
                continue  # Only the longest phrase is counted.
            for phrase in self.phrases[int(word_hashes[i])]:
                if np.array_equal(word_hashes[i : i + len(phrase)], hash_words(phrase)):
                    name = " ".join(phrase)
                    counts[name] = counts.get(name, 0) + 1
                    matched_words += len(phrase)
                    end = i + len(phrase)
                    break
        is_frequent = sum(counts.values()) >= self.min_count
        if not counts or not is_frequent or matched_words < self.min_share * len(word_hashes):
            return None
        return {"phrases": dict(sorted(counts.items())), "share": matched_words / len(word_hashes)}

    def _find_first_words(self, word_hashes: Hashes) -> list[int]:
        first = np.sort(np.fromiter(self.phrases, np.uint64, len(self.phrases)))
        indices = np.minimum(np.searchsorted(first, word_hashes), len(first) - 1)
        return np.flatnonzero(first[indices] == word_hashes).tolist()


def read_word_list(path: str, min_count: int, min_share: float) -> WordList:
    """Reads a list from text files with one word or phrase per line, plain or compressed.

    Raises:
        DataError: if the files have no word.
    """
    phrases: set[tuple[str, ...]] = set()
    policy = read_policy.ErrorPolicy("strict", "list", read_stats.ReadStats(), setting_prefix="--")
    for file in input_files.find_files(path, "--toxic_words").paths:
        for _, line in text_files.iter_texts(file, b"\n", policy):
            phrases.add(tuple(split_words(line)))
    phrases.discard(())
    if not phrases:
        raise DataError(f"{path} lists no word; use a text file with one word or phrase per line")
    by_first_word: dict[int, list[list[str]]] = {}
    for phrase in sorted(phrases, key=lambda words: (-len(words), words)):
        first = int(hash_words([phrase[0]])[0])
        by_first_word.setdefault(first, []).append(list(phrase))
    return WordList(by_first_word, min_count, min_share)
