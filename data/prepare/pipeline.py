"""One pass over the documents, in order, into a folder that appears when it is complete.

    documents.jsonl.zst   the lines that stay, as they were
    dropped.jsonl.zst     where each other document stood, which stage dropped it, and why
    report.json           settings, inputs, counts, checksums

Held in memory: a block of documents for each worker, a digest of each document and, for near
duplicates, signature and bands of each document kept (`docs/prepare.md` has the bytes).
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from data import files
from data.prepare.duplicates import Exact, Near
from data.prepare.examine import Block, Document, Examiner, Finding, examined, examiner
from data.prepare.settings import PrepareConfig
from data.progress import progress
from errors import ConfigError, DataError, DiskError, LockedError

FORMAT = 1  # of report.json
STAGES = ("empty", "quality", "toxicity", "contamination", "exact", "near")
CHARACTERS = 1 << 20  # of a block, about
DOCUMENTS = 1000  # of a block, at most
FREE = ("workers", "cache")  # settings that change nothing in what is written
LOG = logging.getLogger(__name__)


@dataclass
class Counts:
    read: int = 0
    kept: int = 0
    read_bytes: int = 0
    kept_bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    items: Counter[str] = field(default_factory=Counter)


def prepare(cfg: PrepareConfig, out: Path) -> dict[str, Any]:
    """Write `out` from the documents of `cfg`; what report.json says. Nothing half-made stays."""
    if out.exists():
        raise ConfigError(f"--out={out} is there already; name a new folder, or delete it first")
    paths, examine = files.expand(cfg.path), examiner(cfg)
    near = Near(cfg.near) if cfg.near else None
    try:
        with _folder(out) as partial:
            report = _run(cfg, paths, examine, near, partial)
            (partial / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
            for path in partial.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            partial.rename(out)
    except OSError as error:
        raise DiskError(
            f"--out={out}: {error.strerror or error}; nothing was kept; free space or name another"
        ) from error
    return report


def _run(
    cfg: PrepareConfig, paths: list[Path], examine: Examiner, near: Near | None, partial: Path
) -> dict[str, Any]:
    tally, counts = files.Tally(), Counts()
    suffix = "jsonl.zst" if cfg.compress else "jsonl"
    exact = Exact() if cfg.exact else None
    total = sum(path.stat().st_size for path in paths)
    with (
        _Lines(partial / f"documents.{suffix}") as kept,
        _Lines(partial / f"dropped.{suffix}") as dropped,
        progress("preparing", total) as show,
    ):
        blocks = _blocks(documents(cfg, paths, tally))
        for block, findings in examined(blocks, examine, cfg.workers):
            for document, finding in zip(block, findings, strict=True):
                stage, why = _verdict(document, finding, exact, near, paths)
                _count(counts, document, stage, why)
                if stage:
                    here = _where(document.place, paths)
                    dropped.write(json.dumps({**here, "stage": stage, **why}))
                else:
                    kept.write(document.line)
            show(tally.read, f"{counts.kept:,} of {counts.read:,} documents kept")
    if not counts.kept:
        said = ", ".join(f"{stage} {n}" for stage, n in counts.dropped.items())
        lost = f"of {counts.read} documents none is left ({said})"
        raise DataError(f"{cfg.path}: {lost if counts.read else 'no document in it'}; see --help")
    written = {name: lines.described() for name, lines in (("kept", kept), ("dropped", dropped))}
    return _report(cfg, paths, examine, tally, counts, written)


def documents(cfg: PrepareConfig, paths: list[Path], tally: files.Tally) -> Iterator[Document]:
    """The documents of all files, each as a line of JSON with its text."""
    policy = files.Policy(cfg.errors, "documents", tally, prefix="--")
    separator = cfg.separator.replace("\\n", "\n").encode()
    for number, path in enumerate(paths):
        place, found = number << 48, False
        if cfg.source == "text":
            for offset, text in files.texts(path, separator, policy):
                found = True
                yield Document(place | offset, json.dumps({cfg.field: text}), text)
        else:
            for line in files.lines(path, cfg.field, policy):
                found = True
                raw = line.raw.strip("\ufeff \t\r\n")
                if line.text != line.record[cfg.field]:  # mended
                    raw = json.dumps(line.record | {cfg.field: line.text})
                yield Document(place | line.offset, raw, line.text)
        if not found:
            LOG.warning("%s: no document in it", path)


def _blocks(found: Iterator[Document]) -> Iterator[Block]:
    block, size = Block(), 0
    for document in found:
        block.append(document)
        size += len(document.text)
        if size >= CHARACTERS or len(block) >= DOCUMENTS:
            yield block
            block, size = Block(), 0
    if block:
        yield block


def _verdict(
    document: Document, finding: Finding, exact: Exact | None, near: Near | None, paths: list[Path]
) -> tuple[str, dict[str, Any]]:
    """The stage that drops a document and why; "" for one that stays."""
    if finding.stage:
        return finding.stage, dict(finding.why)
    if exact and (first := exact.first(finding.digest, document.place)) is not None:
        return "exact", {"of": _where(first, paths)}
    if near and finding.signature is not None:
        like = near.first(finding.signature, document.place)
        if like is not None:
            return "near", {"of": _where(like[0], paths), "similarity": like[1]}
    return "", {}


def _where(place: int, paths: list[Path]) -> dict[str, Any]:
    return {"file": str(paths[place >> 48]), "byte": place & ((1 << 48) - 1)}


def _count(counts: Counts, document: Document, stage: str, why: dict[str, Any]) -> None:
    size = len(document.text.encode())
    counts.read += 1
    counts.read_bytes += size
    counts.kept += not stage
    counts.kept_bytes += 0 if stage else size
    if stage:
        counts.dropped[stage] += 1
        counts.rules.update(why.get("rules", {}).keys())
        counts.items.update(why.get("items", {}).keys())


def _report(
    cfg: PrepareConfig,
    paths: list[Path],
    examine: Examiner,
    tally: files.Tally,
    counts: Counts,
    written: dict[str, Any],
) -> dict[str, Any]:
    stages = {
        "quality": bool(examine.rules),
        "toxicity": bool(cfg.toxic_words),
        "contamination": bool(cfg.evals),
        "exact": cfg.exact,
        "near": bool(cfg.near),
    }
    report = {
        "format": FORMAT,
        "settings": {name: value for name, value in asdict(cfg).items() if name not in FREE},
        "inputs": [{"file": str(path), "bytes": path.stat().st_size} for path in paths],
        "documents": {
            "read": counts.read,
            "kept": counts.kept,
            "skipped": tally.skipped.total(),
            "replaced": tally.replaced.total(),
        },
        "text_bytes": {"read": counts.read_bytes, "kept": counts.kept_bytes},
        "dropped": {s: counts.dropped[s] for s in STAGES if stages.get(s, True)},
        "written": written,
    }
    if examine.rules:  # a document may break several
        report["quality"] = {
            name: {"low": _finite(low), "high": _finite(high), "broken": counts.rules[name]}
            for name, (low, high) in examine.rules.items()
        }
    if examine.evals:
        hit = {item: counts.items[item] for item in examine.evals.items if item in counts.items}
        items, short = len(examine.evals.items), examine.evals.short
        report["contamination"] = {"items": items, "too_short": short, "hit": hit}
    if cfg.near:
        report["datasketch"] = importlib.metadata.version("datasketch")
    return report


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None  # JSON knows no infinity


class _Lines(contextlib.AbstractContextManager):
    """A file of lines, with its checksum; compressed if its name says so."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, 0
        self.raw: BinaryIO = path.open("wb")
        self.file: Any = self.raw
        if path.suffix == ".zst":
            compressor = zstandard.ZstdCompressor(level=3)
            self.file = compressor.stream_writer(self.raw, closefd=False)

    def write(self, line: str) -> None:
        self.file.write(line.encode() + b"\n")
        self.lines += 1

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.raw.close()

    def described(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self.path.stat().st_size
        return {"file": self.path.name, "lines": self.lines, "bytes": size, "sha256": digest}


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to work in, alone; what a killed process left in it is cleared."""
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    held = os.open(partial, os.O_RDONLY)
    try:
        _lock(held, out)
        try:
            for path in partial.iterdir():
                path.unlink()
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(held)


def _lock(held: int, out: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(f"another process prepares {out}; wait for it or name another") from error
    except OSError:
        LOG.warning("%s: no locks here; let no other process write it", out)
