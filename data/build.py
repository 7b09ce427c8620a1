"""From a source and a tokenizer to a folder with three token stores, made once and kept.

The folder appears by renaming, complete or not at all. Of builders at work on the same data one
builds and the others wait; where a file system has no locks, the first to finish wins.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.files import Tally, home
from data.progress import progress
from data.records import RECORDS
from data.sources import SOURCES, DataConfig, Document, Source
from data.store import FORMAT, Writer
from data.tokenizers import Tokenizer, bpe_size, open_tokenizer, train_bpe
from data.weighed import Weighed
from errors import DataError, DiskError

SPLITS = ("train", "valid", "test")
BLOCK = 4 << 20  # characters encoded at a time
LOG = logging.getLogger(__name__)


def ready(cfg: DataConfig, *, records: bool = False) -> Path:
    """The folder with the three stores and their tokenizer; built if it is not there."""
    source = _source(cfg, records)
    cache = home(cfg.cache, "data.cache")
    folder = cache / _key(source, cfg.tokenizer)
    with _disk(cache):
        if not folder.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                if not folder.exists():
                    _build(cfg, source, folder, records)
    return folder


def _source(cfg: DataConfig, records: bool) -> Source:
    return RECORDS[cfg.source](cfg) if records else SOURCES[cfg.source](cfg)


def _key(source: Source, tokenizer: str) -> str:
    """A name for what the stores are made from; a BPE follows from the source and its size."""
    made = tokenizer if bpe_size(tokenizer) else open_tokenizer(tokenizer).fingerprint
    parts = [FORMAT, source.identity, made]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _build(cfg: DataConfig, source: Source, folder: Path, records: bool) -> None:
    """Build beside `folder`, then rename; a builder that was overtaken uses what is there."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        if size := bpe_size(cfg.tokenizer):
            print(f"learning a BPE vocabulary of {size} from the training split", file=sys.stderr)
            found = (source.vocabulary or source.read)(Tally())
            texts = (text for split, one in found if split == "train" for text in texts_of(one))
            tokenizer: Tokenizer = train_bpe(texts, size)
        else:
            tokenizer = open_tokenizer(cfg.tokenizer)
        tokenizer.save(partial)
        _write(cfg, source, tokenizer, partial, records)
        if _source(cfg, records).identity != source.identity:
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


def texts_of(document: Document) -> tuple[str, ...]:
    """Of a record all, of a document the only one."""
    if isinstance(document, Weighed):
        return (document.text,)
    return (document,) if isinstance(document, str) else document


def _write(
    cfg: DataConfig, source: Source, tokenizer: Tokenizer, partial: Path, records: bool
) -> None:
    tally = Tally()
    weighs = cfg.weighs and not records
    writers = {
        split: Writer(partial / split, tokenizer, records=records, weighs=weighs)
        for split in SPLITS
    }
    with progress("building the token store", source.size) as show:
        block: list[tuple[str, Document]] = []
        waiting = 0
        for split, document in source.read(tally):
            block.append((split, document))
            waiting += sum(map(len, texts_of(document)))
            if waiting >= BLOCK or len(block) >= BLOCK >> 8:
                _add(writers, tokenizer, block)
                show(tally.read, _counted(writers))
                block, waiting = [], 0
        _add(writers, tokenizer, block)
        show(tally.read, _counted(writers))
    for split, writer in writers.items():
        if not writer.tokens:
            where = "data.path" if split == "train" else f"data.{split}_path"
            counts = ", ".join(f"{w.documents} {name}" for name, w in writers.items())
            raise DataError(
                f"no tokens in the {split} split of {cfg.path or cfg.source} (documents: {counts}; "
                f"empty {writer.dropped}, skipped {tally.skipped[split]}); set {where}, or "
                "data.separator to cut files into documents"
            )
        counted = {"skipped": tally.skipped[split], "replaced": tally.replaced[split]}
        writer.finish({"split": split, **counted, "source": source.identity})
        if any(counted.values()):
            LOG.warning("%s: %s of the %s split", cfg.path, counted, split)


def _counted(writers: dict[str, Writer]) -> str:
    return f"{sum(w.tokens for w in writers.values()):,} tokens"


def _add(
    writers: dict[str, Writer], tokenizer: Tokenizer, block: list[tuple[str, Document]]
) -> None:
    """Encode a block of documents and hand them to their splits."""
    ids = iter(tokenizer.encode([text for _, one in block for text, _ in _parts(one)]))
    found = [(split, one, [next(ids) for _ in _parts(one)]) for split, one in block]
    for split, writer in writers.items():
        mine = [(one, parts) for name, one, parts in found if name == split]
        sizes = [_bytes(one) for one, _ in mine]
        if writer.records:
            writer.add_records([(p, size) for (_, p), size in zip(mine, sizes, strict=True)])
        elif writer.weighs:
            weights = [_weights(one, parts) for one, parts in mine]
            writer.add_weighed([np.concatenate(parts) for _, parts in mine], sizes, weights)
        else:
            writer.add([parts[0] for _, parts in mine], sizes)


def _parts(document: Document) -> tuple[tuple[str, float], ...]:
    """What is encoded by itself, with its weight."""
    if isinstance(document, Weighed):
        return document.parts
    return tuple((text, 1.0) for text in texts_of(document))


def _weights(document: Document, parts: list[np.ndarray]) -> np.ndarray:
    """Of each token of a document."""
    own = [weight for _, weight in _parts(document)]
    return np.repeat(np.array(own, np.float32), [len(ids) for ids in parts])


def _bytes(document: Document) -> int:
    """Of the text that counts."""
    return sum(len(text.encode()) for text, weight in _parts(document) if weight)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`; what a killed builder left is cleared away under it."""
    with folder.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another process that builds this token store", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # no locks here: builders race, and the first to rename wins
            yield
            return
        for stale in folder.parent.glob(f"{folder.name}.*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


@contextlib.contextmanager
def _disk(cache: Path) -> Iterator[None]:
    """Trouble with the cache's disk as a DiskError."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"data.cache {cache}: {error.strerror or error}; no store was kept; "
            "free space or set data.cache to another folder"
        ) from error
