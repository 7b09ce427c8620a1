"""Counts of words: what a text tells without a model."""

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
