"""Text pairs: the verse pairs of the embedded corpus, JSON lines, Hugging Face data sets.

A text pair is (anchor, match, hard negatives ...). A JSON object has the fields `a, b`, or `anchor,
positive` and optionally `negative` or `negatives` (a text or a list). No text of a pair may be
empty. Text pairs with the same anchor fall into the same split.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data import corpus
from data.readers import json_lines, read_policy
from data.readers.read_stats import ReadStats
from data.settings import DataConfig
from data.sources import documents
from data.sources.datasets import open_examples
from data.sources.source import TextSource, make_local_source, make_split_source
from data.splits import Document, DocumentStream, HasTokens, contains_text
from settings.json_types import JsonObject

PAIR_FIELDS = (("anchor", "positive"), ("a", "b"))
NEGATIVE_FIELDS = ("negatives", "negative")
EXPECTED_FIELDS = "anchor, positive and perhaps negatives, or a, b"


def open_corpus(cfg: DataConfig) -> TextSource:
    """Returns the verse pairs of the embedded corpus."""

    def read(stats: ReadStats, has_tokens: HasTokens = contains_text) -> DocumentStream:
        for split in ("train", "valid", "test"):
            pairs = corpus.iter_text_pairs(split, cfg.adjacent_negatives)
            for pair in islice(pairs, cfg.max_documents or None):
                yield split, pair

    identity = {"corpus": corpus.NAME, "sha256": corpus.checksums(), "limit": cfg.max_documents}
    identity |= {"neighbours": cfg.adjacent_negatives} if cfg.adjacent_negatives else {}
    # All objectives share one vocabulary, which is learned from the documents.
    read_documents = documents.open_corpus(cfg).read
    return TextSource(identity | {"records": "verses"}, 0, read, read_documents)


def open_jsonl(cfg: DataConfig) -> TextSource:
    """Returns the text pairs of files of JSON lines."""

    def read_pairs(path: Path, policy: read_policy.ErrorPolicy) -> Iterator[Document]:
        for offset, _, record in json_lines.iter_json(path, policy):
            pair = parse_text_pair(record, read_policy.format_location(path, offset), policy)
            if pair is not None:
                yield pair

    return make_local_source(cfg, {"records": EXPECTED_FIELDS}, read_pairs)


def open_datasets(cfg: DataConfig) -> TextSource:
    """Returns the text pairs of a data set."""
    examples = open_examples(cfg)

    def read_split(split: str, stats: ReadStats) -> Iterator[Document]:
        policy = read_policy.ErrorPolicy(cfg.on_error, split, stats)
        for location, record in examples.read(split, policy):
            pair = parse_text_pair(record, location, policy)
            if pair is not None:
                yield pair

    identity = examples.identity | {"field": cfg.text_field, "records": EXPECTED_FIELDS}
    return make_split_source(cfg, identity, examples.size_bytes, read_split)


def parse_text_pair(
    record: JsonObject, location: str, policy: read_policy.ErrorPolicy
) -> tuple[str, ...] | None:
    """Returns the text pair of a JSON object, or None if the policy skips it."""
    names = next((pair for pair in PAIR_FIELDS if all(name in record for name in pair)), None)
    if names is None:
        fields = ", ".join(list(record)[:8])
        policy.reject_document(f"{location} must hold {EXPECTED_FIELDS}; it holds: {fields}")
        return None
    negative: object = next((record[name] for name in NEGATIVE_FIELDS if record.get(name)), [])
    negatives: list[object] = negative if isinstance(negative, list) else [negative]
    parts = [*((name, record[name]) for name in names), *(("negatives", x) for x in negatives)]
    texts = []
    for name, value in parts:
        if not isinstance(value, str) or not value.strip():
            policy.reject_document(
                f"{location} has no text under {name!r}; add it or set data.on_error to skip"
            )
            return None
        text = policy.check_unicode(value, location)
        if text is None:
            return None
        texts.append(text)
    return tuple(texts)
