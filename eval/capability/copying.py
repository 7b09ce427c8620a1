"""Copying: all of what was read (arXiv:2402.01032), or what of it was no noise (arXiv:2312.00752).

Right answers are read before the next is asked for.
"""

import numpy as np

from errors import ConfigError
from eval.capability.examples import PAD, Examples, asked
from schema import Count, config


@config
class Copying:
    """`x1 .. xn copy x1 .. x(n-1)`: say x1 .. xn. A row of T tokens holds T / 2 letters."""

    letters: Count = 26

    @property
    def vocab(self) -> int:
        return 2 + self.letters

    def questions(self, length: int) -> int:
        return length // 2

    def chance(self, length: int) -> float:
        return 1 / self.letters

    def examples(self, rng: np.random.Generator, count: int, length: int) -> Examples:
        return self._copies(rng, np.full(count, self._most(length)), length)

    def lessons(self, rng: np.random.Generator, count: int, length: int) -> Examples:
        """Of all lengths up to that one, so that places alone tell nothing."""
        return self._copies(rng, rng.integers(1, self._most(length) + 1, count), length)

    def _most(self, length: int) -> int:
        if length < 2:
            raise ConfigError(f"copying needs rows of at least 2 tokens, not {length}")
        return length // 2

    def _copies(self, rng: np.random.Generator, sizes: np.ndarray, length: int) -> Examples:
        n, places = sizes[:, None], np.arange(length)
        text = rng.integers(1, 1 + self.letters, (len(sizes), length))
        behind = np.take_along_axis(text, np.clip(places - n, 0, length - 1), axis=1)
        targets = np.where((places >= n) & (places < 2 * n), behind, PAD)
        before = np.take_along_axis(text, np.clip(places - n - 1, 0, length - 1), axis=1)
        tokens = np.where(places < n, text, np.where(places < 2 * n, before, PAD))
        np.put_along_axis(tokens, n, 1 + self.letters, axis=1)
        return asked(tokens, targets)


@config
class SelectiveCopying:
    """A few letters at random places of a row of blanks; at its end each is asked for, in order."""

    letters: Count = 14
    kept: Count = 8  # letters of a row

    @property
    def vocab(self) -> int:
        return 3 + self.letters

    def questions(self, length: int) -> int:
        return self.kept

    def chance(self, length: int) -> float:
        return 1 / self.letters

    def examples(self, rng: np.random.Generator, count: int, length: int) -> Examples:
        n, blank, mark = self.kept, 1 + self.letters, 2 + self.letters
        if length < 2 * n:
            raise ConfigError(
                f"selective_copying.kept {n} must be at most {length // 2}, half of the length"
            )
        letters = rng.integers(1, blank, (count, n))
        places = np.argsort(rng.random((count, length - n)), axis=1)[:, :n]
        tokens, targets = np.full((count, length), blank), np.full((count, length), PAD)
        np.put_along_axis(tokens, np.sort(places, axis=1), letters, axis=1)
        tokens[:, -n:], targets[:, -n:] = mark, letters
        return asked(tokens, targets)

    lessons = examples
