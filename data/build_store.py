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
from collections.abc import Generator
from pathlib import Path

from data.fill_stores import document_texts, weighted_parts, write_stores
from data.images.settings import ImageText
from data.loss_weights import PreferenceRecord
from data.readers.long_text import LongText
from data.readers.read_stats import ReadStats
from data.settings import DataConfig, bpe_size
from data.sources import StoreKind
from data.sources.source import SOURCES_OF_KIND, ReadDocuments, TextSource
from data.split_overlap import SplitOverlap, check_overlap
from data.splits import DocumentStream, HasTokens, contains_text
from data.store_index import FORMAT
from data.tokenizers import SPECIAL_TOKENS, Tokenizer, open_tokenizer, train_bpe
from errors import DataError
from storage import scratch
from storage.disk_errors import disk_errors
from storage.paths import expand_user
from storage.remote import RemoteFolder, is_url

BUILD_VERSION = 3  # Rises if stores of older versions lack a measurement in their index.
DONE_FILE = "COMPLETE.json"  # of a remote store; the last object that is written
WAY_OUT = "no store was written; free space or set data.cache to another folder"
LOG = logging.getLogger(__name__)


def ensure_built(cfg: DataConfig, kind: StoreKind = "documents") -> Path:
    """Returns the folder with the three stores and their tokenizer; builds it if it is missing.

    Raises:
        DataError: if splits share text (`data.max_shared`).
    """
    source = SOURCES_OF_KIND[kind][cfg.kind](cfg)
    is_remote = is_url(cfg.cache)
    local = scratch.local_path(cfg.cache) if is_remote else expand_user(cfg.cache, "data.cache")
    folder = local / _cache_key(source, cfg.tokenizer)
    with disk_errors(local, WAY_OUT):
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
        write_stores(cfg, observed, tokenizer, partial, kind)
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
    tokenizer = train_bpe(texts, size)
    if (learned := tokenizer.vocab_size - len(SPECIAL_TOKENS)) < size:
        print(
            f"data.tokenizer bpe:{size}: the training split has only {learned} pieces to learn; "
            "set a size up to that",
            file=sys.stderr,
        )
    return tokenizer


def _observe(read: ReadDocuments, overlap: SplitOverlap) -> ReadDocuments:
    """Returns a reader of the same documents that adds their text to `overlap`."""

    def read_observed(stats: ReadStats, has_tokens: HasTokens = contains_text) -> DocumentStream:
        for split, document in read(stats, has_tokens):
            if isinstance(document, ImageText):
                overlap.add_image(split, document.image_hash)
            elif isinstance(document, LongText):
                overlap.add(split, document.pieces())
            elif isinstance(document, tuple):
                overlap.add_pair(split, document)
            elif isinstance(document, PreferenceRecord):  # Many replies are stock phrases.
                overlap.add_pair(split, [document.prompt.text])
            else:
                parts = weighted_parts(document)
                overlap.add(split, [part.text for part in parts if part.weight])
            yield split, document

    return read_observed


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
