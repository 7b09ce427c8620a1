"""Text to batches: sources, tokenizers, token stores, packing and the loader. Numpy throughout.

`open_data(config)` gives a tokenizer and a token store for each split; `packing.Packed` makes rows
of a store of documents, `texts.Records` of one of records, `loader.Batches` batches of rows,
`loader.read_ahead` builds them in the background.
Nothing here knows what a model or an objective is.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.build import SPLITS, ready
from data.records import RECORDS
from data.sources import SOURCES, DataConfig
from data.store import Store, fingerprint, read_index
from data.tokenizers import Tokenizer, open_tokenizer
from errors import ConfigError, DataError

__all__ = ["RECORDS", "SOURCES", "SPLITS", "Data", "DataConfig", "open_data"]


@dataclass(frozen=True)
class Data:
    """The stores of a corpus, each opened when first asked for, and the tokenizer they share."""

    folder: Path
    tokenizer: Tokenizer
    verify: bool
    records: "Data | None" = None  # of the same source, where a mixture reads both

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
        parts += [self.records.fingerprint] if self.records else []
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

    def holding(self, records: bool) -> "Data":
        """The part with documents or that with records, where there are both."""
        return self.records if records and self.records else self

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


def open_data(config: DataConfig, kinds: tuple[bool, ...] = (False,)) -> Data:
    """The tokenizer and the stores of `config`, from the cache or built now.

    `kinds` of stores: False is of documents, True of records; with both, records are beside.
    """
    first, *others = [_opened(config, records) for records in kinds]
    for other in others:
        if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise ConfigError(
                f"data.tokenizer {config.tokenizer!r} learns one vocabulary from the documents and "
                "another from the records of this source; use bytes or a tokenizer.json"
            )
        first = dataclasses.replace(first, records=other)
    return first


def _opened(config: DataConfig, records: bool) -> Data:
    folder = ready(config, records=records)
    return Data(folder, open_tokenizer(str(folder)), config.verify)
