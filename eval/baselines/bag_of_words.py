"""Computes baselines from word counts: bag-of-words vectors of texts, and BM25 of text pairs."""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float


def bag_of_words(
    texts: list[str], vocab_indices: Iterable[int], max_words: int
) -> Float[np.ndarray, "N W"]:
    """Returns log(1 + count) of the most common words for each text.

    The vocabulary are the `max_words` most common words of the texts at `vocab_indices`; words of
    equal count are ordered alphabetically.
    """
    words_by_text = [_words(text) for text in texts]
    counts = Counter(word for i in vocab_indices for word in words_by_text[i])
    vocab = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
    index = {word: i for i, word in enumerate(vocab)}
    return np.log1p(_count_words(words_by_text, index))


def bm25(queries: list[str], texts: list[str]) -> Float[np.ndarray, "Q N"]:
    """Returns the score of each text for each query (Okapi BM25: Robertson et al. 1995).

    k1 is 1.2 and b is 0.75. As in Lucene, 1 is added inside the logarithm of the idf, so that no
    word counts against a text.
    """
    query_words, text_words = ([_words(text) for text in group] for group in (queries, texts))
    index = {w: i for i, w in enumerate(sorted({w for words in text_words for w in words}))}
    counts = _count_words(text_words, index)
    query_counts = _count_words(query_words, index)
    document_counts, lengths = (counts > 0).sum(0), counts.sum(1, keepdims=True)
    idf = np.log(1 + (len(texts) - document_counts + 0.5) / (document_counts + 0.5))
    scale = 1.2 * (0.25 + 0.75 * lengths / max(lengths.mean(), 1e-12))
    return query_counts @ (idf * counts * 2.2 / (counts + scale)).T


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _count_words(words_by_text: list[list[str]], index: dict[str, int]) -> Float[np.ndarray, "N W"]:
    """Counts the words of each text that have an index."""
    counts = np.zeros((len(words_by_text), len(index)))
    for row, words in zip(counts, words_by_text, strict=True):
        np.add.at(row, [index[word] for word in words if word in index], 1)
    return counts
