"""Building of token stores: from a source and a tokenizer to a cached folder with three stores.

The folder appears by renaming, either complete or not at all. If several processes build the same
data, one of them builds and the others wait. On a file system without locks, all of them build and
the first to finish wins.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from data.chats.marked_text import encode_parts, without_frame
from data.chats.preferences import PREFERENCE_SOURCES
from data.input_files import ReadStats, expand_user
from data.loss_weights import PreferenceRecord, WeightedDocument, WeightedPart
from data.progress import progress
from data.round_trip import RoundTrip
from data.sources import SOURCES, DataConfig, ReadDocuments, TextSource
from data.split_overlap import SplitOverlap, check_overlap
from data.splits import (
    Document,
    DocumentStream,
    HasTokens,
    StoreKind,
    contains_text,
    split_key,
)
from data.store import FORMAT, TokenStoreWriter
from data.text_files import LongText
from data.text_pairs import TEXT_PAIR_SOURCES
from data.tokenizers import Tokenizer, bpe_size, iter_pieces, open_tokenizer, train_bpe
from errors import DataError, DiskError
from storage import scratch
from storage.remote import RemoteFolder, is_url

SPLITS = ("train", "valid", "test")
BLOCK_CHARACTERS = 4 << 20  # Number of characters that are encoded at a time.
PROBE_CHARACTERS = 1 << 12  # Part of a text that is searched for tokens at a time.
PIECES_PER_BATCH = 4  # Number of pieces of a long text that are encoded at a time.
BUILD_VERSION = 3  # Rises if stores of older versions lack a measurement in their index.
DONE_FILE = "COMPLETE.json"  # of a remote store; the last object that is written
LOG = logging.getLogger(__name__)
# The sources that have documents of a kind. To add a kind, write its sources and add them here.
SOURCES_OF_KIND: Mapping[StoreKind, Mapping[str, Callable[[DataConfig], TextSource]]] = {
    "documents": SOURCES,
    "text_pairs": TEXT_PAIR_SOURCES,
    "preferences": PREFERENCE_SOURCES,
}


def ensure_built(cfg: DataConfig, kind: StoreKind = "documents") -> Path:
    """Returns the folder with the three stores and their tokenizer; builds it if it is missing.

    Raises:
        DataError: if splits share text (`data.max_shared`).
    """
    source = SOURCES_OF_KIND[kind][cfg.kind](cfg)
    is_remote = is_url(cfg.cache)
    local = scratch.local_path(cfg.cache) if is_remote else expand_user(cfg.cache, "data.cache")
    folder = local / _cache_key(source, cfg.tokenizer)
    with _disk_errors(local):
        if not folder.exists():
            local.mkdir(parents=True, exist_ok=True)
            with _build_lock(folder):
                if not folder.exists() and not (is_remote and _download(folder)):
                    _build(cfg, source, folder, kind)
                    if is_remote:
                        scratch.upload_tree(folder)
                        RemoteFolder(scratch.url_of(folder)).write(DONE_FILE, b"{}")
    check_overlap(folder, cfg.max_shared, cfg.path or cfg.source)
    return folder


def _download(folder: Path) -> bool:
    """Downloads a complete store to `folder`; returns whether the remote cache has it."""
    remote = RemoteFolder(scratch.url_of(folder))
    names = remote.list()
    if DONE_FILE not in names:
        return False
    partial = folder.with_name(f"{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    scratch.download_tree(remote, partial, names)
    partial.rename(folder)
    return True


def _cache_key(source: TextSource, tokenizer: str) -> str:
    """Returns a hash of the stores' inputs; source and size determine a BPE vocabulary."""
    identity = tokenizer if bpe_size(tokenizer) else open_tokenizer(tokenizer).identity
    parts = [FORMAT, BUILD_VERSION, source.identity, identity]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _build(cfg: DataConfig, source: TextSource, folder: Path, kind: StoreKind) -> None:
    """Builds beside `folder`, then renames; keeps the folder of another process that was faster.

    Raises:
        DataError: if the source changes during the build.
        OSError: if the folder cannot be renamed.
    """
    partial = folder.with_name(f"{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        for note in source.notes:
            LOG.warning(note)
        tokenizer = _make_tokenizer(cfg, source)
        tokenizer.save(partial)
        overlap = SplitOverlap()
        observed = dataclasses.replace(source, read=_observe(source.read, overlap))
        _write_stores(cfg, observed, tokenizer, partial, kind)
        overlap.write(partial)
        if SOURCES_OF_KIND[kind][cfg.kind](cfg).identity != source.identity:
            raise DataError(f"{cfg.path} changed while it was read; run again")
        for path in partial.rglob("*.*"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            partial.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make_tokenizer(cfg: DataConfig, source: TextSource) -> Tokenizer:
    size = bpe_size(cfg.tokenizer)
    if not size:
        return open_tokenizer(cfg.tokenizer)
    print(f"learning a BPE vocabulary of {size} from the training split", file=sys.stderr)
    documents = (source.read_for_vocabulary or source.read)(ReadStats(warns=False))
    texts = (
        text
        for split, document in documents
        if split == "train"
        for text in document_texts(document)
    )
    return train_bpe(texts, size)


def document_texts(document: Document) -> Iterator[str]:
    """Yields all texts of a record, or the text of a document, a long one in pieces."""
    if isinstance(document, LongText):
        yield from document.pieces()
    elif isinstance(document, PreferenceRecord):
        yield from (text.text for text in document.texts)
    elif isinstance(document, tuple):
        yield from document
    else:
        yield split_key(document)


def _has_tokens(tokenizer: Tokenizer) -> HasTokens:
    def is_encodable(text: str) -> bool:
        starts = range(0, len(text), PROBE_CHARACTERS)
        return any(len(tokenizer.encode([text[i : i + PROBE_CHARACTERS]])[0]) for i in starts)

    def has_tokens(document: Document) -> bool:
        are_found = map(is_encodable, document_texts(document))
        # A record needs all of its texts.
        is_record = isinstance(document, tuple | PreferenceRecord)
        return all(are_found) if is_record else any(are_found)

    return has_tokens


def _observe(read: ReadDocuments, overlap: SplitOverlap) -> ReadDocuments:
    """Returns a reader of the same documents that adds their text to `overlap`."""

    def read_observed(stats: ReadStats, has_tokens: HasTokens = contains_text) -> DocumentStream:
        for split, document in read(stats, has_tokens):
            if isinstance(document, LongText):
                overlap.add(split, document.pieces())
            elif isinstance(document, tuple):
                overlap.add_pair(split, document)
            elif isinstance(document, PreferenceRecord):  # Many replies are stock phrases.
                overlap.add_pair(split, [document.prompt.text])
            else:
                parts = _weighted_parts(document)
                overlap.add(split, [part.text for part in parts if part.weight])
            yield split, document

    return read_observed


def _write_stores(
    cfg: DataConfig, source: TextSource, tokenizer: Tokenizer, partial: Path, kind: StoreKind
) -> None:
    stats = ReadStats()
    has_records = kind != "documents"
    has_weights = cfg.has_weights and not has_records
    writers = {
        split: TokenStoreWriter(
            *(partial / split, tokenizer),
            has_records=has_records,
            has_weights=has_weights,
            has_groups=bool(cfg.groups.field) and not has_records,
        )
        for split in SPLITS
    }
    round_trips = {split: RoundTrip(tokenizer) for split in SPLITS}
    with progress("building the token store", source.size_bytes) as show:
        block: list[tuple[str, Document]] = []
        block_size = 0
        for split, document in source.read(stats, _has_tokens(tokenizer)):
            is_long = isinstance(document, LongText)
            if not is_long:
                block.append((split, document))
                block_size += sum(map(len, document_texts(document)))
            if is_long or block_size >= BLOCK_CHARACTERS or len(block) >= BLOCK_CHARACTERS >> 8:
                _add_block(writers, tokenizer, block, round_trips)
                show(stats.bytes_read, _format_token_count(writers))
                block, block_size = [], 0
            if isinstance(document, LongText):
                for _ in _add_long_text(writers[split], tokenizer, document, round_trips[split]):
                    show(stats.bytes_read, _format_token_count(writers))
        _add_block(writers, tokenizer, block, round_trips)
        show(stats.bytes_read, _format_token_count(writers))
    if stats.hold_out:
        print(f"{cfg.path}: {stats.hold_out}", file=sys.stderr)
    shares = {split: round_trip.share for split, round_trip in round_trips.items()}
    _finish_stores(cfg, source, writers, stats, shares)


def _finish_stores(
    cfg: DataConfig,
    source: TextSource,
    writers: dict[str, TokenStoreWriter],
    stats: ReadStats,
    decodes_back: dict[str, float],
) -> None:
    """Writes the indices of the stores.

    Raises:
        DataError: if a split has no tokens.
    """
    for split, writer in writers.items():
        if not writer.n_tokens:
            setting = "data.path" if split == "train" else f"data.{split}_path"
            counts = ", ".join(f"{w.n_documents} {name}" for name, w in writers.items())
            raise DataError(
                f"no tokens in the {split} split of {cfg.path or cfg.source} (documents: {counts}; "
                f"empty {writer.n_dropped}, skipped {stats.skipped[split]}); set {setting}, or "
                "data.document_separator to cut files into documents"
            )
        errors = {"skipped": stats.skipped[split], "replaced": stats.replaced[split]}
        metadata = {"split": split, **errors, "hold_out": stats.hold_out}
        metadata["decodes_back"] = decodes_back[split]
        writer.finish({**metadata, "source": source.identity})
        if any(errors.values()):
            LOG.warning("%s: unreadable documents of the %s split: %s", cfg.path, split, errors)


def _add_long_text(
    writer: TokenStoreWriter, tokenizer: Tokenizer, document: LongText, round_trip: RoundTrip
) -> Iterator[None]:
    """Adds a long document to a store in pieces, and yields after each batch of them."""
    pieces = iter_pieces(document.pieces(), tokenizer.find_cut)
    while batch := list(islice(pieces, PIECES_PER_BATCH)):
        encoded = tokenizer.encode(batch)
        round_trip.add(batch, encoded)
        for piece, ids in zip(batch, encoded, strict=True):
            writer.extend(ids, len(piece.encode()))
        yield
    writer.end_document()


def _format_token_count(writers: dict[str, TokenStoreWriter]) -> str:
    return f"{sum(w.n_tokens for w in writers.values()):,} tokens"


def _add_block(
    writers: dict[str, TokenStoreWriter],
    tokenizer: Tokenizer,
    block: list[tuple[str, Document]],
    round_trips: dict[str, RoundTrip],
) -> None:
    """Encodes a block of documents and adds each to the store of its split."""
    part_ids = encode_parts(tokenizer, [_weighted_parts(document) for _, document in block])
    encoded = [
        (split, doc, without_frame(tokenizer, ids) if isinstance(doc, WeightedDocument) else ids)
        for (split, doc), ids in zip(block, part_ids, strict=True)
    ]
    for split, writer in writers.items():
        documents = [(document, parts) for name, document, parts in encoded if name == split]
        sizes = [_text_bytes(document) for document, _ in documents]
        texts = [part.text for document, _ in documents for part in _weighted_parts(document)]
        round_trips[split].add(texts, [ids for _, parts in documents for ids in parts])
        if writer.has_records:
            records = [_record_texts(tokenizer, *item) for item in documents]
            writer.add_records(list(zip(records, sizes, strict=True)))
        elif writer.has_weights:
            weights = [_token_weights(document, parts) for document, parts in documents]
            writer.add_weighted([np.concatenate(parts) for _, parts in documents], sizes, weights)
        else:
            groups = [d.group for d, _ in documents if isinstance(d, WeightedDocument)]
            writer.add([parts[0] for _, parts in documents], sizes, groups)


def _record_texts(
    tokenizer: Tokenizer, document: Document, part_ids: list[np.ndarray]
) -> list[np.ndarray]:
    """Returns the ids of each text of a record, without a frame that a template writes."""
    if not isinstance(document, PreferenceRecord):
        return part_ids
    ids = iter(part_ids)
    texts = [np.concatenate([next(ids) for _ in text.parts]) for text in document.texts]
    (prompt, chosen), (_, rejected) = (without_frame(tokenizer, [texts[0], x]) for x in texts[1:])
    return [prompt, chosen, rejected]


def _weighted_parts(document: Document) -> tuple[WeightedPart, ...]:
    """Returns the separately encoded parts of a document with their weights."""
    if isinstance(document, WeightedDocument):
        return document.parts
    if isinstance(document, PreferenceRecord):
        return tuple(part for text in document.texts for part in text.parts)
    return tuple(WeightedPart(text) for text in document_texts(document))


def _token_weights(document: Document, part_ids: list[np.ndarray]) -> np.ndarray:
    """Returns the weight of each token of a document."""
    weights = [part.weight for part in _weighted_parts(document)]
    return np.repeat(np.array(weights, np.float32), [len(ids) for ids in part_ids])


def _text_bytes(document: Document) -> int:
    """Returns the size of the text whose weight is not 0."""
    return sum(len(part.text.encode()) for part in _weighted_parts(document) if part.weight)


@contextlib.contextmanager
def _build_lock(folder: Path) -> Generator[None, None, None]:
    """Holds the lock of `folder` and removes the partial folders of killed processes."""
    with folder.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another process that builds this token store", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # Without locks all processes build, and the first to rename wins.
            yield
            return
        for stale in folder.parent.glob(f"{folder.name}.*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


@contextlib.contextmanager
def _disk_errors(cache: Path) -> Generator[None, None, None]:
    """Reports errors of the cache's disk.

    Raises:
        DiskError: if an operation of the body fails with an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"data.cache {cache}: {error.strerror or error}; no store was written; "
            "free space or set data.cache to another folder"
        ) from error
