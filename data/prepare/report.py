"""The report of a preparation: settings, inputs, counts and checksums."""

import importlib.metadata
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data.prepare.document_filter import DocumentFilter
from data.prepare.settings import PrepareConfig
from data.readers.read_stats import ReadStats
from settings.json_types import JsonObject

FORMAT = 3  # Format of report.json. A change of the results of a filter raises it too.
STAGES = ("empty", "quality", "toxicity", "contamination", "exact", "near")
OUTPUT_NEUTRAL_SETTINGS = ("workers", "cache")  # Settings that do not change the output.


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

    def add(self, text: str, stage: str, reason: JsonObject) -> None:
        """Counts a document, and the stage that drops it with the reason."""
        size = len(text) if text.isascii() else len(text.encode())
        self.n_read += 1
        self.bytes_read += size
        self.n_kept += not stage
        self.bytes_kept += 0 if stage else size
        if stage:
            self.dropped_by_stage[stage] += 1
            self.failures_by_rule.update(reason.get("rules", {}).keys())
            self.matches_by_item.update(reason.get("items", {}).keys())


def describe_settings(cfg: PrepareConfig) -> JsonObject:
    """Returns the settings on which the output depends."""
    return {
        name: value for name, value in asdict(cfg).items() if name not in OUTPUT_NEUTRAL_SETTINGS
    }


def make_report(
    cfg: PrepareConfig,
    paths: list[Path],
    document_filter: DocumentFilter,
    stats: ReadStats,
    counts: PrepareCounts,
    written: JsonObject,
) -> JsonObject:
    """Returns the content of report.json."""
    stages = {
        "quality": bool(document_filter.quality_bounds),
        "toxicity": bool(cfg.toxic_words),
        "contamination": bool(cfg.evals),
        "exact": cfg.exact,
        "near": bool(cfg.jaccard_threshold),
    }
    report = {
        "format": FORMAT,
        "settings": describe_settings(cfg),
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
