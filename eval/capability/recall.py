"""Recall probes: what stood beside a token earlier in the row.

Mqar is multi-query associative recall (Zoology, arXiv:2312.04927). Induction is the task of Mamba
(arXiv:2312.00752, section 4.1.2). Needle is a code hidden in noise, like those of RULER
(arXiv:2404.06654).
"""

import numpy as np

from errors import ConfigError
from eval.capability.examples import PAD, ProbeBatch, make_batch
from settings.types import PositiveFloat, PositiveInt, config


@config
class Mqar:
    """Asks for the values of keys: pairs `k1 v1 .. kn vn`, then each key again among random values.

    The gap between the pairs and the repeated key follows a power law, p(r) ~ r^(gap_exponent - 1).
    In contrast to the paper the noise holds only values, so that no key occurs a third time.
    """

    num_pairs: PositiveInt = 4  # Number of key-value pairs in a row.
    num_values: PositiveInt = 128  # Number of different values, and of different keys.
    gap_exponent: PositiveFloat = 0.01  # Exponent of the gap's power law; 1 is uniform.

    @property
    def vocab_size(self) -> int:
        """The ids are padding, the keys and the values."""
        return 1 + 2 * self.num_values

    def max_questions(self, seq_len: int) -> int:
        """Returns the number of questions in a row: one per pair."""
        return self.num_pairs

    def chance_accuracy(self, seq_len: int) -> float:
        """Returns the accuracy of guessing a value."""
        return 1 / self.num_values

    def make_test_batch(
        self, rng: np.random.Generator, batch_size: int, seq_len: int
    ) -> ProbeBatch:
        """Returns rows with a question at each repeated key.

        Raises:
            ConfigError: if the pairs do not fit into a row, or there are fewer keys than pairs.
        """
        n, V = self.num_pairs, self.num_values
        slots = (seq_len - 2 * n) // 2  # Number of positions at which a key may be repeated.
        if n > min(slots, V):
            raise ConfigError(
                f"mqar.num_pairs {n} must be at most {min(seq_len // 4, V)}, a quarter of the row "
                f"length {seq_len} and the number of keys {V}"
            )
        tokens = rng.integers(1 + V, 1 + 2 * V, (batch_size, seq_len))  # The noise is values.
        targets = np.full((batch_size, seq_len), PAD)
        keys = 1 + _sample_distinct(rng, np.ones(V), batch_size, n)
        tokens[:, 0 : 2 * n : 2] = keys
        values = tokens[:, 1 : 2 * n : 2]
        gap_weights = np.arange(1, slots + 1) ** (self.gap_exponent - 1)
        positions = 2 * n + 2 * _sample_distinct(rng, gap_weights, batch_size, n)
        np.put_along_axis(tokens, positions, keys, axis=1)
        np.put_along_axis(targets, positions, values, axis=1)
        return make_batch(tokens, targets)

    make_train_batch = make_test_batch


@config
class Induction:
    """Asks for the letter after a mark in random letters; the row ends with the same mark."""

    num_letters: PositiveInt = 15  # Number of different letters.

    @property
    def vocab_size(self) -> int:
        """The ids are padding, the letters and the mark."""
        return 2 + self.num_letters

    def max_questions(self, seq_len: int) -> int:
        """Returns the number of questions in a row: one."""
        return 1

    def chance_accuracy(self, seq_len: int) -> float:
        """Returns the accuracy of guessing a letter."""
        return 1 / self.num_letters

    def make_test_batch(
        self, rng: np.random.Generator, batch_size: int, seq_len: int
    ) -> ProbeBatch:
        """Returns rows with a question at their last token."""
        _check_length("induction", seq_len, 3)
        mark, rows = 1 + self.num_letters, np.arange(batch_size)
        tokens = rng.integers(1, mark, (batch_size, seq_len))
        positions = rng.integers(0, seq_len - 2, batch_size)
        tokens[rows, positions] = tokens[:, -1] = mark
        targets = np.full((batch_size, seq_len), PAD)
        targets[:, -1] = tokens[rows, positions + 1]
        return make_batch(tokens, targets)

    make_train_batch = make_test_batch


@config
class Needle:
    """Asks for a code of letters, which follows a mark anywhere in a row of the same letters.

    The row ends with the question mark and the code without its last letter. Each letter of the
    code is one answer.
    """

    num_letters: PositiveInt = 26  # Number of different letters.
    code_length: PositiveInt = 4  # Letters of a code.

    @property
    def vocab_size(self) -> int:
        """The ids are padding, the letters, the mark and the question mark."""
        return 3 + self.num_letters

    def max_questions(self, seq_len: int) -> int:
        """Returns the number of questions in a row: one per letter of the code."""
        return self.code_length

    def chance_accuracy(self, seq_len: int) -> float:
        """Returns the accuracy of guessing a letter."""
        return 1 / self.num_letters

    def make_test_batch(
        self, rng: np.random.Generator, batch_size: int, seq_len: int
    ) -> ProbeBatch:
        """Returns rows with a code in them and the questions at their end."""
        C, mark, question = self.code_length, 1 + self.num_letters, 2 + self.num_letters
        _check_length("needle", seq_len, 2 * C + 1)
        haystack_length = seq_len - C  # The question and all answers but the last take C tokens.
        tokens = rng.integers(1, mark, (batch_size, seq_len))
        positions = rng.integers(0, haystack_length - C, batch_size)[:, None]
        np.put_along_axis(tokens, positions, mark, axis=1)
        code = np.take_along_axis(tokens, positions + 1 + np.arange(C), axis=1)
        tokens[:, haystack_length], tokens[:, haystack_length + 1 :] = question, code[:, :-1]
        targets = np.full((batch_size, seq_len), PAD)
        targets[:, haystack_length:] = code
        return make_batch(tokens, targets)

    make_train_batch = make_test_batch


def _sample_distinct(
    rng: np.random.Generator, weights: np.ndarray, batch_size: int, n_samples: int
) -> np.ndarray:
    """Samples indices of `weights` without replacement, as an array [batch_size, n_samples].

    Sorting u^(1/weight) has the distribution of such samples (Efraimidis & Spirakis 2006).
    """
    times = rng.exponential(size=(batch_size, len(weights))) / weights
    return np.argsort(times, axis=1, kind="stable")[:, :n_samples]


def _check_length(name: str, seq_len: int, min_length: int) -> None:
    if seq_len < min_length:
        raise ConfigError(f"{name} needs rows of at least {min_length} tokens, not {seq_len}")
