"""A filter by a list of words and phrases that the user gives; the project brings none.

A word list knows no context: it also drops texts about what it names, and dialects it was not made
for (Dodge et al., arXiv:2104.08758, section 5). Read dropped.jsonl before trusting one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import files
from data.prepare.words import words
from errors import DataError


@dataclass(frozen=True)
class WordList:
    """Texts with at least `count` listed phrases, making up at least `share` of their words."""

    phrases: Mapping[str, frozenset[tuple[str, ...]]]  # by their first word
    count: int
    share: float

    def found(self, text: list[str]) -> dict[str, Any] | None:
        """Why a text of these words is dropped, None: it is not."""
        met: dict[str, int] = {}
        covered = i = 0
        while i < len(text):
            here = [p for p in self.phrases.get(text[i], ()) if tuple(text[i : i + len(p)]) == p]
            length = max(map(len, here), default=0)  # the longest, counted once
            if length:
                phrase = " ".join(text[i : i + length])
                met[phrase] = met.get(phrase, 0) + 1
            covered += length
            i += max(1, length)
        if not met or sum(met.values()) < self.count or covered < self.share * len(text):
            return None
        return {"phrases": dict(sorted(met.items())), "share": covered / len(text)}


def read(path: str, count: int, share: float) -> WordList:
    """The list in a text file, a word or phrase a line, plain or compressed."""
    phrases: dict[str, set[tuple[str, ...]]] = {}
    policy = files.Policy("strict", "list", files.Tally(), prefix="--")
    for file in files.expand(path):
        _read_into(phrases, file, policy)
    if not phrases:
        raise DataError(f"{path} lists no word; give a text file with a word or phrase a line")
    return WordList({first: frozenset(own) for first, own in phrases.items()}, count, share)


def _read_into(phrases: dict[str, set], path: Path, policy: files.Policy) -> None:
    for _, line in files.texts(path, b"\n", policy):
        if phrase := tuple(words(line)):
            phrases.setdefault(phrase[0], set()).add(phrase)
