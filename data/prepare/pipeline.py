"""One pass over the documents, in order, into a folder that appears only when it is complete.

    documents.jsonl.zst   the lines that stay, unchanged
    dropped.jsonl.zst     for each dropped document its location, the stage, and the reason
    report.json           settings, inputs, counts, checksums

Memory holds a block of documents for each worker, a digest of each document and, for near
duplicates, the signature and bands of each document that stays (`docs/prepare.md` has the bytes).
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import zstandard

from data import text_files
from data.prepare.document_filter import (
    DocumentBlock,
    DocumentFilter,
    FilterResult,
    InputDocument,
    filter_blocks,
    make_filter,
)
from data.prepare.duplicates import ExactDuplicates, NearDuplicates
from data.prepare.settings import PrepareConfig
from data.progress import progress
from errors import ConfigError, DataError, DiskError, LockedError
from settings.json_types import JsonObject

FORMAT = 2  # Format of report.json.
STAGES = ("empty", "quality", "toxicity", "contamination", "exact", "near")
BLOCK_CHARACTERS = 1 << 20  # Approximate number of characters in a block.
BLOCK_DOCUMENTS = 1000  # Maximum number of documents in a block.
OUTPUT_NEUTRAL_SETTINGS = ("workers", "cache")  # Settings that do not change the output.
LOG = logging.getLogger(__name__)


@dataclass
class PrepareCounts:
    """Counts of documents and bytes."""

    n_read: int = 0
    n_kept: int = 0
    bytes_read: int = 0
    bytes_kept: int = 0
    dropped_by_stage: Counter[str] = field(default_factory=Counter)
    failures_by_rule: Counter[str] = field(default_factory=Counter)
    matches_by_item: Counter[str] = field(default_factory=Counter)


def prepare(cfg: PrepareConfig, out: Path) -> JsonObject:
    """Writes the folder `out` from the documents of `cfg` and returns the content of report.json.

    Raises:
        ConfigError: if `out` exists.
        DiskError: if a file cannot be written; no partial output stays.
    """
    if out.exists():
        raise ConfigError(f"--out={out} exists; choose a new folder, or delete it first")
    paths, document_filter = text_files.expand_globs(cfg.path), make_filter(cfg)
    near = NearDuplicates(cfg.jaccard_threshold) if cfg.jaccard_threshold else None
    try:
        with _partial_folder(out) as partial:
            report = _filter_documents(cfg, paths, document_filter, near, partial)
            (partial / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
            for path in partial.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            partial.rename(out)
    except OSError as error:
        raise DiskError(
            f"--out={out}: {error.strerror or error}; no file was written; free space or choose "
            "another folder"
        ) from error
    return report


def _filter_documents(
    cfg: PrepareConfig,
    paths: list[Path],
    document_filter: DocumentFilter,
    near: NearDuplicates | None,
    partial: Path,
) -> JsonObject:
    stats, counts = text_files.ReadStats(), PrepareCounts()
    suffix = "jsonl.zst" if cfg.compress else "jsonl"
    exact = ExactDuplicates() if cfg.exact else None
    total = sum(path.stat().st_size for path in paths)
    with (
        _LineWriter(partial / f"documents.{suffix}") as documents_file,
        _LineWriter(partial / f"dropped.{suffix}") as dropped_file,
        progress("preparing", total) as show,
    ):
        blocks = _iter_blocks(iter_documents(cfg, paths, stats))
        for block, results in filter_blocks(blocks, document_filter, cfg.workers):
            for document, result in zip(block, results, strict=True):
                stage, reason = _find_stage(document, result, exact, near, paths)
                _update_counts(counts, document, stage, reason)
                if stage:
                    location = _format_location(document.location, paths)
                    dropped_file.write(json.dumps({**location, "stage": stage, **reason}))
                else:
                    documents_file.write(document.line)
            show(stats.bytes_read, f"{counts.n_kept:,} of {counts.n_read:,} documents kept")
    if not counts.n_read:
        raise DataError(f"{cfg.path}: no document in it; see --help")
    if not counts.n_kept:
        dropped = ", ".join(f"{stage} {n}" for stage, n in counts.dropped_by_stage.items())
        raise DataError(
            f"{cfg.path}: all {counts.n_read} documents were dropped ({dropped}); see --help"
        )
    written = {"kept": documents_file.describe(), "dropped": dropped_file.describe()}
    return _make_report(cfg, paths, document_filter, stats, counts, written)


def iter_documents(
    cfg: PrepareConfig, paths: list[Path], stats: text_files.ReadStats
) -> Iterator[InputDocument]:
    """Yields the documents of all files, each as a line of JSON with its text."""
    policy = text_files.ErrorPolicy(cfg.on_error, "documents", stats, setting_prefix="--")
    separator = cfg.document_separator.replace("\\n", "\n").encode()
    for number, path in enumerate(paths):
        first_location, is_empty = number << 48, True
        if cfg.source == "text":
            for offset, text in text_files.iter_texts(path, separator, policy):
                is_empty = False
                raw = json.dumps({cfg.text_field: text})
                yield InputDocument(first_location | offset, raw, text)
        else:
            for line in text_files.iter_json_texts(path, cfg.text_field, policy):
                is_empty = False
                raw = line.raw.strip("\ufeff \t\r\n")
                if line.text != line.record[cfg.text_field]:  # A lone surrogate was replaced.
                    raw = json.dumps(line.record | {cfg.text_field: line.text})
                yield InputDocument(first_location | line.offset, raw, line.text)
        if is_empty:
            LOG.warning("%s: no document in it", path)


def _iter_blocks(documents: Iterator[InputDocument]) -> Iterator[DocumentBlock]:
    block, size = DocumentBlock(), 0
    for document in documents:
        block.append(document)
        size += len(document.text)
        if size >= BLOCK_CHARACTERS or len(block) >= BLOCK_DOCUMENTS:
            yield block
            block, size = DocumentBlock(), 0
    if block:
        yield block


def _find_stage(
    document: InputDocument,
    result: FilterResult,
    exact: ExactDuplicates | None,
    near: NearDuplicates | None,
    paths: list[Path],
) -> tuple[str, JsonObject]:
    """Returns the stage that drops a document and the reason; the stage is "" if it stays."""
    if result.stage:
        return result.stage, dict(result.reason)
    if exact and (first := exact.find_or_add(result.digest, document.location)) is not None:
        return "exact", {"of": _format_location(first, paths)}
    if near and result.signature is not None:
        match = near.find_or_add(result.signature, document.location)
        if match is not None:
            return "near", {"of": _format_location(match[0], paths), "similarity": match[1]}
    return "", {}


def _format_location(location: int, paths: list[Path]) -> JsonObject:
    return {"file": str(paths[location >> 48]), "byte": location & ((1 << 48) - 1)}


def _update_counts(
    counts: PrepareCounts, document: InputDocument, stage: str, reason: JsonObject
) -> None:
    size = len(document.text.encode())
    counts.n_read += 1
    counts.bytes_read += size
    counts.n_kept += not stage
    counts.bytes_kept += 0 if stage else size
    if stage:
        counts.dropped_by_stage[stage] += 1
        counts.failures_by_rule.update(reason.get("rules", {}).keys())
        counts.matches_by_item.update(reason.get("items", {}).keys())


def _make_report(
    cfg: PrepareConfig,
    paths: list[Path],
    document_filter: DocumentFilter,
    stats: text_files.ReadStats,
    counts: PrepareCounts,
    written: JsonObject,
) -> JsonObject:
    stages = {
        "quality": bool(document_filter.quality_bounds),
        "toxicity": bool(cfg.toxic_words),
        "contamination": bool(cfg.evals),
        "exact": cfg.exact,
        "near": bool(cfg.jaccard_threshold),
    }
    report = {
        "format": FORMAT,
        "settings": {
            name: value
            for name, value in asdict(cfg).items()
            if name not in OUTPUT_NEUTRAL_SETTINGS
        },
        "inputs": [{"file": str(path), "bytes": path.stat().st_size} for path in paths],
        "documents": {
            "read": counts.n_read,
            "kept": counts.n_kept,
            "skipped": stats.skipped.total(),
            "replaced": stats.replaced.total(),
        },
        "text_bytes": {"read": counts.bytes_read, "kept": counts.bytes_kept},
        "dropped": {s: counts.dropped_by_stage[s] for s in STAGES if stages.get(s, True)},
        "written": written,
    }
    if document_filter.quality_bounds:  # A document may fail several rules.
        report["quality"] = {
            name: {
                "low": _json_bound(low),
                "high": _json_bound(high),
                "failed": counts.failures_by_rule[name],
            }
            for name, (low, high) in document_filter.quality_bounds.items()
        }
    if document_filter.eval_ngrams:
        items = document_filter.eval_ngrams.items
        report["contamination"] = {
            "items": len(items),
            "too_short": document_filter.eval_ngrams.n_too_short,
            "matched": {
                item: counts.matches_by_item[item]
                for item in items
                if item in counts.matches_by_item
            },
        }
    if cfg.jaccard_threshold:
        report["datasketch"] = importlib.metadata.version("datasketch")
    return report


def _json_bound(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None  # JSON has no infinity.


class _LineWriter(contextlib.AbstractContextManager):
    """A file of lines with its checksum, compressed if its name ends in .zst."""

    def __init__(self, path: Path) -> None:
        self.path, self.n_lines = path, 0
        self.raw: BinaryIO = path.open("wb")
        self.file: BinaryIO = self.raw
        if path.suffix == ".zst":
            compressor = zstandard.ZstdCompressor(level=3)
            self.file = compressor.stream_writer(self.raw, closefd=False)

    def write(self, line: str) -> None:
        self.file.write(line.encode() + b"\n")
        self.n_lines += 1

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.raw.close()

    def describe(self) -> JsonObject:
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self.path.stat().st_size
        return {"file": self.path.name, "lines": self.n_lines, "bytes": size, "sha256": digest}


@contextlib.contextmanager
def _partial_folder(out: Path) -> Generator[Path, None, None]:
    """Locks a folder beside `out`, removes the files of a killed process, and yields it."""
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        _lock(descriptor, out)
        try:
            for path in partial.iterdir():
                path.unlink()
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(
            f"another process prepares {out}; wait for it or choose another folder"
        ) from error
    except OSError:
        LOG.warning(
            "%s: the file system has no locks; no other process must write this folder", out
        )
