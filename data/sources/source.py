"""What a source is, and how one is made of local files or of splits.

A source has an identity, which selects the token store that serves it, and yields `(split, text)`.
A split without its own path is held out of the training documents (`data/splits.py`).
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from data.readers import input_files, read_policy
from data.readers.read_stats import ReadStats
from data.settings import DataConfig
from data.sources import SOURCE_PATHS, StoreKind
from data.splits import (
    Document,
    DocumentStream,
    HasTokens,
    as_long_text,
    assign_splits,
    contains_text,
    plan_hold_out,
)
from settings.json_types import JsonObject
from settings.lazy import LazyTable

OpenSource = Callable[[DataConfig], "TextSource"]
LOG = logging.getLogger(__name__)
SPLIT_RULE = 2  # Version of the rules in `data.splits`.


class ReadDocuments(Protocol):
    """A function that reads a source."""

    def __call__(self, stats: ReadStats, has_tokens: HasTokens = contains_text) -> DocumentStream:
        """Yields the documents of all splits.

        Args:
            stats: Statistics, which are updated.
            has_tokens: Whether a document has tokens; others fill no split.
        """


@dataclass(frozen=True)
class TextSource:
    """A source of documents with an identity."""

    identity: JsonObject  # JSON; equal identities mean equal documents.
    size_bytes: int  # Size on disk; 0: unknown.
    read: ReadDocuments
    # Reads the documents from which a vocabulary is learned; None: `read`.
    read_for_vocabulary: ReadDocuments | None = None
    notes: tuple[str, ...] = ()  # Remarks on files that are left out.


# The sources that have documents of a kind.
SOURCES_OF_KIND: dict[StoreKind, LazyTable[OpenSource]] = {
    kind: LazyTable(paths) for kind, paths in SOURCE_PATHS.items()
}


def make_local_source(cfg: DataConfig, options: JsonObject, read_file: Callable) -> TextSource:
    """Returns a source of local files.

    Args:
        cfg: The settings of the data.
        options: Entries of the identity beside the files.
        read_file: A function of (path, policy) that yields the documents of one file.
    """
    named = {"train": cfg.path, "valid": cfg.valid_path, "test": cfg.test_path}
    files_by_split = {split: input_files.find_files(path) for split, path in named.items() if path}
    paths = {split: listed for split, (listed, _) in files_by_split.items()}
    input_files.check_disjoint(paths)

    def read_split(split: str, stats: ReadStats) -> Iterator[Document]:
        policy = read_policy.ErrorPolicy(cfg.on_error, split, stats)
        for path in paths[split]:
            is_empty, n_skipped = True, stats.skipped.total()
            for document in read_file(path, policy):
                is_empty = is_empty and document == ""
                yield document
            if is_empty and stats.warns and n_skipped == stats.skipped.total():
                LOG.warning("%s: the file has no text", path)

    files = {
        split: [input_files.file_identity(p) for p in listed] for split, listed in paths.items()
    }
    size = sum(identity[1] for identities in files.values() for identity in identities)
    identity = {"source": cfg.kind, "files": files, "errors": cfg.on_error, **options}
    source = make_split_source(cfg, identity, size, read_split)
    notes = tuple(note for _, listed in files_by_split.values() for note in listed)
    return dataclasses.replace(source, notes=notes)


def make_split_source(
    cfg: DataConfig, identity: dict, size_bytes: int, read_split: Callable
) -> TextSource:
    """Returns a source that reads the splits with a path and cuts the others from training.

    Args:
        cfg: The settings of the data.
        identity: The identity, without shares and limit.
        size_bytes: Size on disk; 0: unknown.
        read_split: A function of (split, stats) that yields the documents of a split.
    """
    shares = {"valid": cfg.valid_share, "test": cfg.test_share}
    named = {"train": cfg.path, "valid": cfg.valid_path, "test": cfg.test_path}
    missing = {split: share for split, share in shares.items() if not named[split]}

    def read_documents(split: str, stats: ReadStats) -> Iterator[Document]:
        return map(as_long_text, islice(read_split(split, stats), cfg.max_documents or None))

    def read(stats: ReadStats, has_tokens: HasTokens = contains_text) -> DocumentStream:
        for split in filter(named.get, named):
            if split == "train" and missing:
                first_pass = read_documents(split, ReadStats(warns=False))
                plan = plan_hold_out(first_pass, missing, has_tokens)
                stats.hold_out = plan.describe()
                yield from assign_splits(read_documents(split, stats), plan)
            else:
                yield from ((split, document) for document in read_documents(split, stats))

    rules = {"shares": missing, "limit": cfg.max_documents, "split_rule": SPLIT_RULE}
    return TextSource(identity | rules, size_bytes, read)
