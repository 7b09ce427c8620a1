"""Opens the token stores of a corpus and their tokenizer, and builds those that are missing."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from data.build_store import ensure_built
from data.settings import DataConfig
from data.sources import StoreKind
from data.split_overlap import read_shared
from data.splits import SPLITS
from data.store import TokenStore
from data.store_index import fingerprint, read_index
from data.tokenizers import Tokenizer, open_tokenizer
from errors import ConfigError, DataError
from settings.json_types import JsonObject


@dataclass(frozen=True)
class Data:
    """The token stores of a corpus, each opened at first use, and their common tokenizer."""

    folder: Path
    tokenizer: Tokenizer
    verify: bool
    group_temperature: float = 1.0  # Of the rows of the training split.
    kind: StoreKind = "documents"
    # Stores of other kinds of the same source, if the parts of a mixture read several kinds.
    others: tuple["Data", ...] = ()

    @functools.cached_property
    def train(self) -> TokenStore:
        """The token store of the training split."""
        return self._open("train")

    @functools.cached_property
    def valid(self) -> TokenStore:
        """The token store of the validation split."""
        return self._open("valid")

    @functools.cached_property
    def test(self) -> TokenStore:
        """The token store of the test split."""
        return self._open("test")

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of all three splits.

        Equal fingerprints mean equal tokens in equal order.
        """
        parts = [fingerprint(self._index(split)) for split in SPLITS]
        parts += [other.fingerprint for other in self.others]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def decodes_back(self) -> dict[str, float]:
        """The share of the bytes of each split that the tokenizer gives back."""
        return {split: float(self._index(split)["decodes_back"]) for split in SPLITS}

    @property
    def shared_text(self) -> dict[str, float]:
        """The largest share of the text of each held-out split that is in another split too."""
        shares: dict[str, float] = {}
        for part in (self, *self.others):
            for shared in read_shared(part.folder):
                shares[shared.split] = max(shared.share, shares.get(shared.split, 0.0))
        return shares

    @property
    def record_counts(self) -> tuple[int, ...]:
        """The number of records of each split of `SPLITS`; () for documents."""
        if self.kind == "documents":
            return ()
        return self.train.n_records, self.valid.n_records, self.test.n_records

    def describe(self) -> JsonObject:
        """Returns the record of the data: fingerprints, source, and counts of each split."""
        indices = {split: self._index(split) for split in SPLITS}
        counts = ("documents", "tokens", "text_bytes", "dropped", "skipped", "replaced")
        return {
            "fingerprint": self.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "vocab": self.tokenizer.vocab_size,
            "source": indices["train"]["source"],
            **{
                split: {n: index[n] for n in (*counts, "groups") if n in index}
                for split, index in indices.items()
            },
        }

    def select(self, kind: StoreKind) -> "Data":
        """Returns the stores of a kind if they are open, else those that were opened first."""
        return next((other for other in self.others if other.kind == kind), self)

    def _index(self, split: str) -> JsonObject:
        with self._fix_hint():
            index = read_index(self.folder / split)
            if index["tokenizer"] != self.tokenizer.fingerprint:
                recorded, actual = index["tokenizer"][:12], self.tokenizer.fingerprint[:12]
                raise DataError(
                    f"{split} was made with tokenizer {recorded}, the folder has {actual}"
                )
            return index

    def _open(self, split: str) -> TokenStore:
        self._index(split)
        with self._fix_hint():
            temperature = self.group_temperature if split == "train" else 1.0
            return TokenStore(
                self.folder / split, verify=self.verify, group_temperature=temperature
            )

    @contextlib.contextmanager
    def _fix_hint(self) -> Generator[None, None, None]:
        try:
            yield
        except DataError as error:
            raise DataError(f"{error} (delete {self.folder} and run again)") from error


def open_data(config: DataConfig, kinds: tuple[StoreKind, ...] = ("documents",)) -> Data:
    """Opens the tokenizer and the stores of `config`, from the cache or newly built.

    Args:
        config: The settings of the data.
        kinds: Kinds of stores to open. The stores after the first are the attribute `others` of it.

    Raises:
        ConfigError: if two kinds would get different vocabularies.
    """
    data, *others = [_open_one(config, kind) for kind in kinds]
    for other in others:
        if other.tokenizer.fingerprint != data.tokenizer.fingerprint:
            raise ConfigError(
                f"data.tokenizer {config.tokenizer!r} learns one vocabulary from the "
                f"{_in_words(data.kind)} and another from the {_in_words(other.kind)} of this "
                "source; use bytes or a tokenizer.json"
            )
    return dataclasses.replace(data, others=tuple(others))


def _open_one(config: DataConfig, kind: StoreKind) -> Data:
    folder = ensure_built(config, kind)
    tokenizer = open_tokenizer(str(folder))
    return Data(folder, tokenizer, config.verify, config.groups.temperature, kind)


def _in_words(kind: StoreKind) -> str:
    return kind.replace("_", " ")
