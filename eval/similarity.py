"""Similarities against those that people see: of 50 news texts, and of pairs of words.

Spearman's correlation of the cosine of vectors (a contrastive objective's own, else those of the
last norm, pooled) with the mean judgement, for Lee-50 (Lee, Pincombe & Welsh 2005), WordSim-353 and
SimLex-999. The sets are small: `_low` and `_high` are a 95 % bootstrap interval, over texts for
Lee-50, whose pairs share them, over pairs for words. The same architecture untrained stands beside,
for texts a bag of words too. The files come from `python -m data.fetch sts`.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from data import fetch
from errors import DataError
from eval.bag_of_words import bag_of_words
from eval.features import untrained
from eval.retrieval import embedded
from eval.task import Score, Subject

DRAWS = 1000
WORDS = 100_000  # all
TEXTS, JUDGED = "lee.cor", "similarities0-1.txt"
PAIRS = {"wordsim353": "wordsim353.tsv", "simlex999": "simlex999.txt"}


class Pairs(NamedTuple):
    """Pairs of things, by number, with what people say of them."""

    things: list[str]
    left: np.ndarray
    right: np.ndarray
    judged: Float[np.ndarray, " P"]


class Similarity:
    version: ClassVar[int] = 2
    objective: ClassVar[str] = ""

    def __init__(self, splits: tuple[str, ...] = ()):
        pass

    def __call__(self, subject: Subject) -> Iterator[Score]:
        cache, begun = subject.settings.data.cache, untrained(subject)
        said = fetch.read("sts", TEXTS, cache, "latin-1")
        lee = texts(said, fetch.read("sts", JUDGED, cache))
        yield from scores("lee50", lee, vectors(subject, lee.things), _by_text)
        yield _score("lee50/untrained_spearman", lee, vectors(begun, lee.things))
        bag = bag_of_words(lee.things, range(len(lee.things)), WORDS)
        yield _score("lee50/bag_of_words_spearman", lee, bag)
        for name, file in PAIRS.items():
            pairs = words(fetch.read("sts", file, cache), name)
            yield from scores(name, pairs, vectors(subject, pairs.things), _by_pair)
            yield _score(f"{name}/untrained_spearman", pairs, vectors(begun, pairs.things))


def vectors(subject: Subject, things: list[str]) -> Float[np.ndarray, "N D"]:
    return embedded(subject, things)


def scores(
    name: str,
    pairs: Pairs,
    x: Float[np.ndarray, "N D"],
    drawn: Callable[[Pairs, np.random.Generator], np.ndarray],
) -> Iterator[Score]:
    """The correlation with its interval; `drawn` are the pairs of one bootstrap sample."""
    close, rng = cosines(x, pairs), np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        some = drawn(pairs, rng)
        found.append(spearman(close[some], pairs.judged[some]))
    low, high = np.quantile(found, (0.025, 0.975))
    yield _score(f"{name}/spearman", pairs, x)
    yield Score(f"{name}/spearman_low", float(low))
    yield Score(f"{name}/spearman_high", float(high))


def cosines(x: Float[np.ndarray, "N D"], pairs: Pairs) -> Float[np.ndarray, " P"]:
    """Of the pairs; a vector of 0 is like nothing."""
    size = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(size > 0, size, 1)
    return np.sum(unit[pairs.left] * unit[pairs.right], axis=1)


def spearman(a: Float[np.ndarray, " P"], b: Float[np.ndarray, " P"]) -> float:
    """0 where one side does not vary, or is not there."""
    if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def texts(corpus: str, judged: str) -> Pairs:
    """Lee-50: a text a line, and the judgements above the diagonal of a table."""
    things = corpus.strip("\n").split("\n")
    try:
        table = np.array([line.split("\t") for line in judged.strip().split("\n")], float)
    except ValueError as error:
        raise DataError(f"{JUDGED} is no table of numbers ({error}); fetch it anew") from error
    if table.shape != (len(things), len(things)):
        raise DataError(f"{JUDGED} is {table.shape} for {len(things)} texts; fetch it anew")
    left, right = np.triu_indices(len(things), 1)
    return Pairs(things, left, right, table[left, right])


def words(text: str, name: str) -> Pairs:
    """A pair of words and their similarity a line; # begins a remark."""
    rows = [line.split("\t") for line in text.splitlines() if line and line[0] != "#"]
    if any(len(row) != 3 for row in rows):
        raise DataError(f"{name} has a line without word, word, number; fetch it anew")
    place = {word: i for i, word in enumerate(dict.fromkeys(w for row in rows for w in row[:2]))}
    left, right = (np.array([place[row[side]] for row in rows]) for side in (0, 1))
    return Pairs(list(place), left, right, np.array([float(row[2]) for row in rows]))


def _score(name: str, pairs: Pairs, x: Float[np.ndarray, "N D"]) -> Score:
    return Score(name, spearman(cosines(x, pairs), pairs.judged), len(pairs.judged))


def _by_text(pairs: Pairs, rng: np.random.Generator) -> np.ndarray:
    """Pairs of drawn texts, as often as both were drawn; a text is not paired with itself."""
    times = np.bincount(rng.integers(len(pairs.things), size=len(pairs.things)))
    times = np.pad(times, (0, len(pairs.things) - len(times)))
    return np.repeat(np.arange(len(pairs.judged)), times[pairs.left] * times[pairs.right])


def _by_pair(pairs: Pairs, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(len(pairs.judged), size=len(pairs.judged))
