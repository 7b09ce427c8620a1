"""One pass over the documents, in order, into a folder that appears only when it is complete.

    documents.jsonl.zst   the lines that stay, unchanged
    dropped.jsonl.zst     for each dropped document its location, the stage, and the reason
    report.json           settings, inputs, counts, checksums

Memory holds a block of documents for each worker, a digest of each document and, for near
duplicates, the signature and bands of each document that stays (`docs/prepare.md` has the bytes).
"""

import importlib.metadata
import json
import logging
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from data.prepare.contamination import find_eval_files
from data.prepare.document_filter import (
    DocumentBlock,
    DocumentFilter,
    FilteredBlock,
    FilterResult,
    InputDocument,
    filter_blocks,
    make_filter,
)
from data.prepare.duplicates import ExactDuplicates, NearDuplicates
from data.prepare.journal import FilterJournal
from data.prepare.output import LineWriter, partial_folder, partial_path
from data.prepare.report import FORMAT, PrepareCounts, describe_settings, make_report
from data.prepare.settings import PrepareConfig
from data.progress import progress
from data.readers import input_files, json_lines, read_policy, read_stats, text_files
from errors import ConfigError, DataError, DiskError
from settings.json_types import JsonObject

BLOCK_CHARACTERS = 1 << 20  # Approximate number of characters in a block.
BLOCK_DOCUMENTS = 1000  # Maximum number of documents in a block.
LOG = logging.getLogger(__name__)


def prepare(cfg: PrepareConfig, out: Path) -> JsonObject:
    """Writes the folder `out` from the documents of `cfg` and returns the content of report.json.

    The same call after an interruption continues from the results of the filters that are stored
    beside `out`.

    Raises:
        ConfigError: if `out` exists.
        DiskError: if a file cannot be written; no partial output stays.
    """
    if out.exists():
        raise ConfigError(f"--out={out} exists; choose a new folder, or delete it first")
    inputs = input_files.find_files(cfg.path, "--path")
    for note in inputs.notes:
        LOG.warning("%s", note)
    identity, document_filter = _describe_inputs(cfg, inputs.paths), make_filter(cfg)
    near = NearDuplicates(cfg.jaccard_threshold) if cfg.jaccard_threshold else None
    try:
        with partial_folder(out) as partial:
            journal = FilterJournal(partial, identity)
            report = _filter_documents(cfg, inputs.paths, document_filter, near, journal)
            (partial / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
            journal.delete()
            for path in partial.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            partial.rename(out)
    except OSError as error:
        shutil.rmtree(partial_path(out), ignore_errors=True)
        raise DiskError(
            f"--out={out}: {error.strerror or error}; no file was written; free space or choose "
            "another folder"
        ) from error
    return report


def _describe_inputs(cfg: PrepareConfig, paths: list[Path]) -> JsonObject:
    """Returns all that the results of the filters depend on."""
    toxic = (
        input_files.find_files(cfg.toxic_words, "--toxic_words").paths if cfg.toxic_words else []
    )
    files = [*paths, *toxic, *(find_eval_files(cfg.evals) if cfg.evals else [])]
    return {
        "format": FORMAT,
        "settings": describe_settings(cfg),
        "files": [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files],
        "unicode": unicodedata.unidata_version,
        "datasketch": cfg.jaccard_threshold and importlib.metadata.version("datasketch"),
    }


def _filter_documents(
    cfg: PrepareConfig,
    paths: list[Path],
    document_filter: DocumentFilter,
    near: NearDuplicates | None,
    journal: FilterJournal,
) -> JsonObject:
    stats, counts = read_stats.ReadStats(), PrepareCounts()
    suffix = "jsonl.zst" if cfg.compress else "jsonl"
    exact = ExactDuplicates() if cfg.exact else None
    total = sum(path.stat().st_size for path in paths)

    def run(blocks: Iterator[DocumentBlock]) -> Iterator[FilteredBlock]:
        return filter_blocks(blocks, document_filter, cfg.workers)

    with (
        LineWriter(journal.folder / f"documents.{suffix}") as documents_file,
        LineWriter(journal.folder / f"dropped.{suffix}") as dropped_file,
        progress("preparing", total) as show,
    ):
        blocks = _iter_blocks(iter_documents(cfg, paths, stats))
        for block, results in journal.filter(blocks, run):
            for document, result in zip(block, results, strict=True):
                stage, reason = _find_stage(document, result, exact, near, paths)
                counts.add(document.text, stage, reason)
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
    return make_report(cfg, paths, document_filter, stats, counts, written)


def iter_documents(
    cfg: PrepareConfig, paths: list[Path], stats: read_stats.ReadStats
) -> Iterator[InputDocument]:
    """Yields the documents of all files, each as a line of JSON with its text."""
    policy = read_policy.ErrorPolicy(cfg.on_error, "documents", stats, setting_prefix="--")
    separator = text_files.parse_separator(cfg.document_separator, "--document_separator")
    for number, path in enumerate(paths):
        first_location, is_empty = number << 48, True
        if cfg.source == "text":
            for offset, text in text_files.iter_texts(path, separator, policy):
                is_empty = False
                raw = json.dumps({cfg.text_field: text})
                yield InputDocument(first_location | offset, raw, text)
        else:
            for line in json_lines.iter_json_texts(path, cfg.text_field, policy):
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
