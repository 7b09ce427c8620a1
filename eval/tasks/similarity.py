"""Compares similarities of embeddings with human ratings, for news texts and for word pairs.

The score is Spearman's correlation of cosines with mean human scores on Lee-50 (Lee, Pincombe &
Welsh 2005), WordSim-353 and SimLex-999. A contrastive objective computes the embeddings; for other
objectives they are the pooled outputs of the last norm. The data sets are small, so `_low` and
`_high` report a 95 % bootstrap interval: over texts for Lee-50, whose pairs share texts, and over
pairs for words. Baselines are the same architecture untrained and, for texts, a bag of words. The
files come from `python -m data.fetch sts`.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from data import fetch
from errors import DataError
from eval.baselines.bag_of_words import bag_of_words
from eval.features import with_random_init
from eval.task import EvalContext, Score
from eval.tasks.retrieval import embed_texts

BOOTSTRAP_SAMPLES = 1000
BASELINE_WORDS = 100_000  # More than the texts contain, so that all words count.
LEE_TEXTS_FILE, LEE_SCORES_FILE = "lee.cor", "similarities0-1.txt"
WORD_PAIR_FILES = {"wordsim353": "wordsim353.tsv", "simlex999": "simlex999.txt"}


class SimilarityData(NamedTuple):
    """Holds P pairs of items, as indices into `items`, and the human scores of the pairs."""

    items: list[str]
    left: np.ndarray
    right: np.ndarray
    human_scores: Float[np.ndarray, " P"]


class Similarity:
    """Measures the rank correlation of embedding similarities with human scores."""

    version: ClassVar[int] = 3

    def __init__(self, splits: tuple[str, ...] = ()):
        """Ignores the splits, since the task reads files of its own."""

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every data set."""
        cache, untrained_ctx = ctx.settings.data.cache, with_random_init(ctx)
        texts = fetch.read_file("sts", LEE_TEXTS_FILE, cache, "latin-1")
        lee = parse_lee50(texts, fetch.read_file("sts", LEE_SCORES_FILE, cache))
        yield from bootstrap_scores("lee50", lee, embed_items(ctx, lee.items), _resample_texts)
        untrained = embed_items(untrained_ctx, lee.items)
        yield _spearman_score("lee50/untrained_spearman", lee, untrained)
        bag = bag_of_words(lee.items, range(len(lee.items)), BASELINE_WORDS)
        yield _spearman_score("lee50/bag_of_words_spearman", lee, bag)
        for name, file in WORD_PAIR_FILES.items():
            pairs = parse_word_pairs(fetch.read_file("sts", file, cache), name)
            yield from bootstrap_scores(name, pairs, embed_items(ctx, pairs.items), _resample_pairs)
            untrained = embed_items(untrained_ctx, pairs.items)
            yield _spearman_score(f"{name}/untrained_spearman", pairs, untrained)


def embed_items(ctx: EvalContext, items: list[str]) -> Float[np.ndarray, "N D"]:
    """Returns one embedding per item."""
    return embed_texts(ctx, items)


def bootstrap_scores(
    name: str,
    pairs: SimilarityData,
    x: Float[np.ndarray, "N D"],
    resample: Callable[[SimilarityData, np.random.Generator], np.ndarray],
) -> Iterator[Score]:
    """Yields the correlation of the embeddings `x` and the ends of its bootstrap interval.

    `resample` returns the indices of the pairs of one bootstrap sample.
    """
    cosines, rng = pair_cosines(x, pairs), np.random.default_rng(0)
    correlations = []
    for _ in range(BOOTSTRAP_SAMPLES):
        indices = resample(pairs, rng)
        correlations.append(spearman(cosines[indices], pairs.human_scores[indices]))
    low, high = np.quantile(correlations, (0.025, 0.975))
    yield _spearman_score(f"{name}/spearman", pairs, x)
    yield Score(f"{name}/spearman_low", float(low))
    yield Score(f"{name}/spearman_high", float(high))


def pair_cosines(x: Float[np.ndarray, "N D"], pairs: SimilarityData) -> Float[np.ndarray, " P"]:
    """Returns the cosine of each pair; it is 0 if one of the vectors is 0."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(norms > 0, norms, 1)
    return np.sum(unit[pairs.left] * unit[pairs.right], axis=1)


def spearman(a: Float[np.ndarray, " P"], b: Float[np.ndarray, " P"]) -> float:
    """Returns Spearman's rank correlation; it is 0 if an input is empty or constant."""
    if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def parse_lee50(text: str, score_table: str) -> SimilarityData:
    """Parses Lee-50: one text per line, and a table with the scores above its diagonal.

    Raises:
        DataError: if the table is not numeric or does not fit the number of texts.
    """
    texts = text.strip("\n").split("\n")
    try:
        table = np.array([line.split("\t") for line in score_table.strip().split("\n")], float)
    except ValueError as error:
        raise DataError(
            f"{LEE_SCORES_FILE} is no table of numbers ({error}); fetch it again"
        ) from error
    if table.shape != (len(texts), len(texts)):
        raise DataError(
            f"{LEE_SCORES_FILE} is {table.shape} for {len(texts)} texts; fetch it again"
        )
    left, right = np.triu_indices(len(texts), 1)
    return SimilarityData(texts, left, right, table[left, right])


def parse_word_pairs(text: str, name: str) -> SimilarityData:
    """Parses lines of two words and their similarity, separated by tabs; # begins a comment.

    Raises:
        DataError: if a line does not have three fields.
    """
    rows = [line.split("\t") for line in text.split("\n") if line and line[0] != "#"]
    if any(len(row) != 3 for row in rows):
        raise DataError(f"{name} has a line that is not WORD, WORD, NUMBER; fetch it again")
    index = {word: i for i, word in enumerate(dict.fromkeys(w for row in rows for w in row[:2]))}
    left, right = (np.array([index[row[side]] for row in rows]) for side in (0, 1))
    return SimilarityData(list(index), left, right, np.array([float(row[2]) for row in rows]))


def _spearman_score(name: str, pairs: SimilarityData, x: Float[np.ndarray, "N D"]) -> Score:
    return Score(
        name, spearman(pair_cosines(x, pairs), pairs.human_scores), len(pairs.human_scores)
    )


def _resample_texts(pairs: SimilarityData, rng: np.random.Generator) -> np.ndarray:
    """Resamples texts and repeats each pair as often as both of its texts were sampled together.

    A text is never paired with itself.
    """
    counts = np.bincount(rng.integers(len(pairs.items), size=len(pairs.items)))
    counts = np.pad(counts, (0, len(pairs.items) - len(counts)))
    return np.repeat(np.arange(len(pairs.human_scores)), counts[pairs.left] * counts[pairs.right])


def _resample_pairs(pairs: SimilarityData, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(len(pairs.human_scores), size=len(pairs.human_scores))
