"""Text to batches: sources, tokenizers, token stores, packing and the loader. Numpy throughout.

`open_data(config)` gives a tokenizer and a token store for each split; `packing.Packed` makes rows
of a store, `loader.Batches` batches of rows, `loader.read_ahead` builds them in the background.
Nothing here knows what a model or an objective is.
"""

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.build import SPLITS, ready
from data.sources import SOURCES, DataConfig
from data.store import Store, fingerprint, read_index
from data.tokenizers import Tokenizer, open_tokenizer
from errors import DataError

__all__ = ["SOURCES", "SPLITS", "Data", "DataConfig", "open_data"]


@dataclass(frozen=True)
class Data:
    """The stores of a corpus, each opened when first asked for, and the tokenizer they share."""

    folder: Path
    tokenizer: Tokenizer
    verify: bool

    @functools.cached_property
    def train(self) -> Store:
        return self._open("train")

    @functools.cached_property
    def valid(self) -> Store:
        return self._open("valid")

    @functools.cached_property
    def test(self) -> Store:
        return self._open("test")

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of all three splits; equal fingerprints mean equal tokens in equal order."""
        parts = [fingerprint(self._index(split)) for split in SPLITS]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a run records of its data."""
        indices = {split: self._index(split) for split in SPLITS}
        counts = ("documents", "tokens", "text_bytes", "dropped", "skipped", "replaced")
        return {
            "fingerprint": self.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "vocab": self.tokenizer.vocab,
            "source": indices["train"]["source"],
            **{split: {n: index[n] for n in counts} for split, index in indices.items()},
        }

    def _index(self, split: str) -> dict[str, Any]:
        with self._way_out():
            index = read_index(self.folder / split)
            if index["tokenizer"] != self.tokenizer.fingerprint:
                made, given = index["tokenizer"][:12], self.tokenizer.fingerprint[:12]
                raise DataError(f"{split} was made with tokenizer {made}, the folder has {given}")
            return index

    def _open(self, split: str) -> Store:
        self._index(split)
        with self._way_out():
            return Store(self.folder / split, verify=self.verify)

    @contextlib.contextmanager
    def _way_out(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise DataError(f"{error} (delete {self.folder} for that)") from error


def open_data(config: DataConfig) -> Data:
    """The tokenizer and the stores of `config`, from the cache or built now."""
    folder = ready(config)
    return Data(folder, open_tokenizer(str(folder)), config.verify)
