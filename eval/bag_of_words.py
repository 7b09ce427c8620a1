"""Counts of words: what a text tells without a model, and BM25: what one tells about another."""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float


def bag_of_words(texts: list[str], known: Iterable[int], most: int) -> Float[np.ndarray, "N W"]:
    """log(1 + count) of the commonest words of the texts `known`; ties by the alphabet."""
    split = [re.findall(r"[a-z]+", text.lower()) for text in texts]
    counts = Counter(word for i in known for word in split[i])
    common = sorted(counts, key=lambda word: (-counts[word], word))[:most]
    place = {word: i for i, word in enumerate(common)}
    out = np.zeros((len(texts), len(common)))
    for row, words in zip(out, split, strict=True):
        np.add.at(row, [place[word] for word in words if word in place], 1)
    return np.log1p(out)


def bm25(queries: list[str], texts: list[str]) -> Float[np.ndarray, "Q N"]:
    """How well each text answers each query (Okapi BM25: Robertson et al. 1995), k1 1.2, b .75, idf
    with a 1 added, as Lucene has it, so that no word counts against a text."""
    split = [[re.findall(r"[a-z]+", one.lower()) for one in some] for some in (queries, texts)]
    place = {w: i for i, w in enumerate(sorted({w for words in split[1] for w in words}))}
    counts = np.zeros((len(texts), len(place)))
    for row, words in zip(counts, split[1], strict=True):
        np.add.at(row, [place[word] for word in words], 1)
    asked = np.zeros((len(queries), len(place)))
    for row, words in zip(asked, split[0], strict=True):
        np.add.at(row, [place[word] for word in words if word in place], 1)
    holding, size = (counts > 0).sum(0), counts.sum(1, keepdims=True)
    idf = np.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
    scale = 1.2 * (0.25 + 0.75 * size / max(size.mean(), 1e-12))
    return asked @ (idf * counts * 2.2 / (counts + scale)).T
