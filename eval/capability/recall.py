"""Recall: what stood beside a token earlier in the row.

Mqar is multi-query associative recall (Zoology, arXiv:2312.04927), Induction the task of Mamba
(arXiv:2312.00752, section 4.1.2), Needle a code hidden in noise (as RULER's, arXiv:2404.06654).
"""

import numpy as np

from errors import ConfigError
from eval.capability.examples import PAD, Examples, asked
from schema import Count, Positive, config


@config
class Mqar:
    """`k1 v1 .. kn vn`, then every key once more among random values: say what stood beside it.

    How far behind the pairs a key comes again follows a power law, p(r) ~ r^(power - 1). Other than
    in the paper the noise holds values only, so that no key is there a third time.
    """

    pairs: Count = 4
    values: Count = 128  # and as many keys
    power: Positive = 0.01

    @property
    def vocab(self) -> int:
        return 1 + 2 * self.values

    def questions(self, length: int) -> int:
        return self.pairs

    def chance(self, length: int) -> float:
        return 1 / self.values

    def examples(self, rng: np.random.Generator, count: int, length: int) -> Examples:
        n, V = self.pairs, self.values
        slots = (length - 2 * n) // 2  # places where a key may come again
        if n > min(slots, V):
            raise ConfigError(
                f"mqar.pairs {n} must be at most {min(length // 4, V)}, a quarter of the length "
                f"{length} and the keys there are"
            )
        tokens = rng.integers(1 + V, 1 + 2 * V, (count, length))  # values are noise, too
        targets = np.full((count, length), PAD)
        keys = 1 + _distinct(rng, np.ones(V), count, n)
        tokens[:, 0 : 2 * n : 2] = keys
        values = tokens[:, 1 : 2 * n : 2]
        again = 2 * n + 2 * _distinct(rng, np.arange(1, slots + 1) ** (self.power - 1), count, n)
        np.put_along_axis(tokens, again, keys, axis=1)
        np.put_along_axis(targets, again, values, axis=1)
        return asked(tokens, targets)

    lessons = examples


@config
class Induction:
    """A row of random letters that holds one mark, and ends with it: say what stood behind it."""

    letters: Count = 15

    @property
    def vocab(self) -> int:
        return 2 + self.letters

    def questions(self, length: int) -> int:
        return 1

    def chance(self, length: int) -> float:
        return 1 / self.letters

    def examples(self, rng: np.random.Generator, count: int, length: int) -> Examples:
        _room("induction", length, 3)
        mark, rows = 1 + self.letters, np.arange(count)
        tokens = rng.integers(1, mark, (count, length))
        places = rng.integers(0, length - 2, count)
        tokens[rows, places] = tokens[:, -1] = mark
        targets = np.full((count, length), PAD)
        targets[:, -1] = tokens[rows, places + 1]
        return asked(tokens, targets)

    lessons = examples


@config
class Needle:
    """A code behind a mark, anywhere in a row of the same letters; at the end it is asked for.

    The row ends with the question and the code but its last letter: one answer a letter.
    """

    letters: Count = 26
    code: Count = 4

    @property
    def vocab(self) -> int:
        return 3 + self.letters

    def questions(self, length: int) -> int:
        return self.code

    def chance(self, length: int) -> float:
        return 1 / self.letters

    def examples(self, rng: np.random.Generator, count: int, length: int) -> Examples:
        C, mark, question = self.code, 1 + self.letters, 2 + self.letters
        _room("needle", length, 2 * C + 1)
        hay = length - C  # the question and its answers but the last take C
        tokens = rng.integers(1, mark, (count, length))
        places = rng.integers(0, hay - C, count)[:, None]
        np.put_along_axis(tokens, places, mark, axis=1)
        code = np.take_along_axis(tokens, places + 1 + np.arange(C), axis=1)
        tokens[:, hay], tokens[:, hay + 1 :] = question, code[:, :-1]
        targets = np.full((count, length), PAD)
        targets[:, hay:] = code
        return asked(tokens, targets)

    lessons = examples


def _distinct(rng: np.random.Generator, odds: np.ndarray, count: int, most: int) -> np.ndarray:
    """[count most] indices of `odds`, none twice in a row: the order of u^(1/odds) is that of
    drawing without putting back (Efraimidis & Spirakis 2006)."""
    times = rng.exponential(size=(count, len(odds))) / odds
    return np.argsort(times, axis=1, kind="stable")[:, :most]


def _room(name: str, length: int, least: int) -> None:
    if length < least:
        raise ConfigError(f"{name} needs rows of at least {least} tokens, not {length}")
