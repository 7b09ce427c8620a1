"""Tracking a state, which no fixed number of layers of attention or of positive decays can.

Parity and modular arithmetic (Grazzi et al., arXiv:2411.12537). A lesson asks at every place, which
teaches all lengths up to its own at once; judged is the last answer of a row alone.
"""

import numpy as np

from errors import ConfigError
from eval.capability.examples import PAD, Examples, asked
from schema import Count, config

PLUS, MINUS, TIMES = 0, 1, 2


@config
class Parity:
    """Is the number of ones among the bits so far odd? Bits and answers are ids 1 and 2."""

    @property
    def vocab(self) -> int:
        return 3

    def questions(self, length: int) -> int:
        return length

    def chance(self, length: int) -> float:
        return 1 / 2

    def lessons(self, rng: np.random.Generator, count: int, length: int) -> Examples:
        bits = rng.integers(0, 2, (count, length))
        return asked(1 + bits, 1 + np.cumsum(bits, axis=1) % 2)

    def examples(self, rng: np.random.Generator, count: int, length: int) -> Examples:
        return _last(self.lessons(rng, count, length))


@config
class Modular:
    """`3 + 1 x 4 - 2`, without brackets, products first: the value so far, modulo `base`.

    Ids 1 .. base are numbers, the next three plus, minus and times. A row begins with a number and
    asks behind each: one of an even length ends with a sign that nothing follows.
    """

    base: Count = 5

    @property
    def vocab(self) -> int:
        return 4 + self.base

    def questions(self, length: int) -> int:
        return (length + 1) // 2

    def chance(self, length: int) -> float:
        """As often as the commonest value comes: 0 is likelier, products make it so."""
        return float(self._values((length + 1) // 2).max())

    def lessons(self, rng: np.random.Generator, count: int, length: int) -> Examples:
        numbers = rng.integers(0, self.base, (count, (length + 1) // 2))
        signs = rng.integers(0, 3, (count, length // 2))
        tokens, targets = np.zeros((count, length), int), np.full((count, length), PAD)
        tokens[:, 0::2], tokens[:, 1::2] = 1 + numbers, 1 + self.base + signs
        total, product = np.zeros(count, int), numbers[:, 0]
        targets[:, 0] = 1 + product
        for i in range(1, numbers.shape[1]):
            sign, number = signs[:, i - 1], numbers[:, i]
            total = np.where(sign == TIMES, total, total + product)
            factor = np.where(sign == TIMES, product, np.where(sign == MINUS, -1, 1))
            product = factor * number % self.base
            targets[:, 2 * i] = 1 + (total + product) % self.base
        return asked(tokens, targets)

    def examples(self, rng: np.random.Generator, count: int, length: int) -> Examples:
        return _last(self.lessons(rng, count, length))

    def _values(self, numbers: int) -> np.ndarray:
        """[base] How likely each value of an expression of so many numbers is."""
        M = self.base
        odds = np.zeros((M, M))  # of (sum of the closed products, the open one)
        odds[0] = 1 / M
        for _ in range(numbers - 1):
            new = np.zeros((M, M))
            for total, product in np.ndindex(M, M):
                share = odds[total, product] / (3 * M)
                for number in range(M):
                    new[total, product * number % M] += share
                    new[(total + product) % M, number] += share
                    new[(total + product) % M, -number % M] += share
            odds = new
        total, product = np.indices((M, M))
        return np.bincount(((total + product) % M).ravel(), odds.ravel(), M)


def _last(rows: Examples) -> Examples:
    """The same rows, with only their last question left."""
    if not rows.weights.shape[1]:
        raise ConfigError("a row of 0 tokens asks nothing; give a length of at least 1")
    last = rows.weights.shape[1] - 1 - int(np.argmax(rows.weights[0, ::-1]))
    only = np.arange(rows.weights.shape[1]) == last
    return Examples(rows.tokens, np.where(only, rows.targets, PAD), rows.weights * only)
