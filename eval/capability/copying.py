"""Copying probes: copy a whole text (arXiv:2402.01032) or only its letters (arXiv:2312.00752).

The model reads each correct answer before it is asked for the next one.
"""

import numpy as np

from errors import ConfigError
from eval.capability.examples import PAD, ProbeBatch, make_batch
from settings.types import PositiveInt, config


@config
class Copying:
    """Asks for a copy of random letters: the answers in `x1 .. xn copy x1 .. x(n-1)` are x1 .. xn.

    A row of T tokens holds T / 2 letters.
    """

    num_letters: PositiveInt = 26  # Number of different letters.

    @property
    def vocab_size(self) -> int:
        """The ids are padding, the letters and the copy mark."""
        return 2 + self.num_letters

    def max_questions(self, seq_len: int) -> int:
        """Returns the largest number of questions in a row: one per letter."""
        return seq_len // 2

    def chance_accuracy(self, seq_len: int) -> float:
        """Returns the accuracy of guessing a letter."""
        return 1 / self.num_letters

    def make_test_batch(
        self, rng: np.random.Generator, batch_size: int, seq_len: int
    ) -> ProbeBatch:
        """Returns rows that hold as many letters as fit."""
        return self._make_copies(rng, np.full(batch_size, self._max_letters(seq_len)), seq_len)

    def make_train_batch(
        self, rng: np.random.Generator, batch_size: int, seq_len: int
    ) -> ProbeBatch:
        """Returns rows of all lengths up to `seq_len`, so that positions alone reveal no answer."""
        return self._make_copies(
            rng, rng.integers(1, self._max_letters(seq_len) + 1, batch_size), seq_len
        )

    def _max_letters(self, seq_len: int) -> int:
        if seq_len < 2:
            raise ConfigError(f"copying needs rows of at least 2 tokens, not {seq_len}")
        return seq_len // 2

    def _make_copies(
        self, rng: np.random.Generator, n_letters: np.ndarray, seq_len: int
    ) -> ProbeBatch:
        n, positions = n_letters[:, None], np.arange(seq_len)
        text = rng.integers(1, 1 + self.num_letters, (len(n_letters), seq_len))
        answers = np.take_along_axis(text, np.clip(positions - n, 0, seq_len - 1), axis=1)
        targets = np.where((positions >= n) & (positions < 2 * n), answers, PAD)
        previous = np.take_along_axis(text, np.clip(positions - n - 1, 0, seq_len - 1), axis=1)
        copy = np.where(positions < 2 * n, previous, PAD)
        tokens = np.where(positions < n, text, copy)
        np.put_along_axis(tokens, n, 1 + self.num_letters, axis=1)
        return make_batch(tokens, targets)


@config
class SelectiveCopying:
    """Asks for the letters of a row of blanks, in their order, after the end of the row."""

    num_letters: PositiveInt = 14  # Number of different letters.
    num_copied: PositiveInt = 8  # Number of letters in a row, at random positions.

    @property
    def vocab_size(self) -> int:
        """The ids are padding, the letters, the blank and the question mark."""
        return 3 + self.num_letters

    def max_questions(self, seq_len: int) -> int:
        """Returns the number of questions in a row: one per letter."""
        return self.num_copied

    def chance_accuracy(self, seq_len: int) -> float:
        """Returns the accuracy of guessing a letter."""
        return 1 / self.num_letters

    def make_test_batch(
        self, rng: np.random.Generator, batch_size: int, seq_len: int
    ) -> ProbeBatch:
        """Returns rows of blanks and letters, each followed by the questions.

        Raises:
            ConfigError: if the letters take more than half of a row.
        """
        n, blank, mark = self.num_copied, 1 + self.num_letters, 2 + self.num_letters
        if seq_len < 2 * n:
            raise ConfigError(
                f"selective_copying.num_copied {n} must be at most {seq_len // 2}, half of the "
                "row length"
            )
        letters = rng.integers(1, blank, (batch_size, n))
        positions = np.argsort(rng.random((batch_size, seq_len - n)), axis=1)[:, :n]
        tokens, targets = np.full((batch_size, seq_len), blank), np.full((batch_size, seq_len), PAD)
        np.put_along_axis(tokens, np.sort(positions, axis=1), letters, axis=1)
        tokens[:, -n:], targets[:, -n:] = mark, letters
        return make_batch(tokens, targets)

    make_train_batch = make_test_batch
