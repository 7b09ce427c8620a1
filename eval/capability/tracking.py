"""State tracking probes: parity and modular arithmetic (Grazzi et al., arXiv:2411.12537).

No fixed number of layers of attention, or of linear recurrences with positive eigenvalues, can
track these states. A training row has a question at every position, which teaches all lengths up to
its own. A test row has only the last question.
"""

import numpy as np

from errors import ConfigError
from eval.capability.examples import PAD, ProbeBatch, make_batch
from settings.types import PositiveInt, config

PLUS, MINUS, TIMES = 0, 1, 2


@config
class Parity:
    """Asks whether the number of ones among the bits so far is odd.

    Bits and answers have the ids 1 and 2.
    """

    @property
    def vocab_size(self) -> int:
        """The ids are padding and two bits."""
        return 3

    def max_questions(self, seq_len: int) -> int:
        """Returns the largest number of questions in a row: one per bit."""
        return seq_len

    def chance_accuracy(self, seq_len: int) -> float:
        """Returns the accuracy of guessing a bit."""
        return 1 / 2

    def make_train_batch(
        self, rng: np.random.Generator, batch_size: int, seq_len: int
    ) -> ProbeBatch:
        """Returns rows with a question at every bit."""
        bits = rng.integers(0, 2, (batch_size, seq_len))
        return make_batch(1 + bits, 1 + np.cumsum(bits, axis=1) % 2)

    def make_test_batch(
        self, rng: np.random.Generator, batch_size: int, seq_len: int
    ) -> ProbeBatch:
        """Returns rows with a question at their last bit."""
        return _only_last_question(self.make_train_batch(rng, batch_size, seq_len))


@config
class ModularArithmetic:
    """Asks for the value so far, modulo `base`, of an expression like `3 + 1 x 4 - 2`.

    There are no brackets, and products come first. The ids 1 .. base are numbers, the next three
    are plus, minus and times. A row begins with a number and has a question at each number. A row
    of even length ends with an operator.
    """

    base: PositiveInt = 5  # Modulus, and number of different numbers.

    @property
    def vocab_size(self) -> int:
        """The ids are padding, the numbers and three operators."""
        return 4 + self.base

    def max_questions(self, seq_len: int) -> int:
        """Returns the largest number of questions in a row: one per number."""
        return (seq_len + 1) // 2

    def chance_accuracy(self, seq_len: int) -> float:
        """Returns the probability of the most common value; products make 0 more likely."""
        return float(self._value_probs((seq_len + 1) // 2).max())

    def make_train_batch(
        self, rng: np.random.Generator, batch_size: int, seq_len: int
    ) -> ProbeBatch:
        """Returns rows with a question at every number."""
        numbers = rng.integers(0, self.base, (batch_size, (seq_len + 1) // 2))
        signs = rng.integers(0, 3, (batch_size, seq_len // 2))
        tokens, targets = np.zeros((batch_size, seq_len), int), np.full((batch_size, seq_len), PAD)
        tokens[:, 0::2], tokens[:, 1::2] = 1 + numbers, 1 + self.base + signs
        total, product = np.zeros(batch_size, int), numbers[:, 0]
        targets[:, 0] = 1 + product
        for i in range(1, numbers.shape[1]):
            sign, number = signs[:, i - 1], numbers[:, i]
            total = np.where(sign == TIMES, total, total + product)
            factor = np.where(sign == TIMES, product, np.where(sign == MINUS, -1, 1))
            product = factor * number % self.base
            targets[:, 2 * i] = 1 + (total + product) % self.base
        return make_batch(tokens, targets)

    def make_test_batch(
        self, rng: np.random.Generator, batch_size: int, seq_len: int
    ) -> ProbeBatch:
        """Returns rows with a question at their last number."""
        return _only_last_question(self.make_train_batch(rng, batch_size, seq_len))

    def _value_probs(self, n_numbers: int) -> np.ndarray:
        """Returns the probability of each value [base] of an expression of `n_numbers` numbers."""
        M = self.base
        probs = np.zeros((M, M))  # By the sum of the closed products and by the open product.
        probs[0] = 1 / M
        for _ in range(n_numbers - 1):
            next_probs = np.zeros((M, M))
            for total, product in np.ndindex(M, M):
                share = probs[total, product] / (3 * M)
                for number in range(M):
                    next_probs[total, product * number % M] += share
                    next_probs[(total + product) % M, number] += share
                    next_probs[(total + product) % M, -number % M] += share
            probs = next_probs
        total, product = np.indices((M, M))
        return np.bincount(((total + product) % M).ravel(), probs.ravel(), M)


def _only_last_question(batch: ProbeBatch) -> ProbeBatch:
    """Returns the same rows with only their last question.

    Raises:
        ConfigError: if the rows have no tokens.
    """
    n_tokens = batch.weights.shape[1]
    if not n_tokens:
        raise ConfigError("a row of 0 tokens has no question; give a length of at least 1")
    last = n_tokens - 1 - int(np.argmax(batch.weights[0, ::-1]))
    is_last = np.arange(n_tokens) == last
    return ProbeBatch(batch.tokens, np.where(is_last, batch.targets, PAD), batch.weights * is_last)
