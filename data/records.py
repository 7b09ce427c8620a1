"""Texts that belong together: the verse pairs of the embedded corpus, JSON lines, data sets.

A record is (anchor, match, hard negatives ...). A line of JSON says it as `a, b` or as `anchor,
positive` and perhaps `negative` or `negatives` (a text or a list). All texts of a record must say
something. Records with the same anchor fall into the same split.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data import corpus, files, hub_stream
from data.sources import SOURCES, DataConfig, Document, Documents, Source, divided, local

PAIRS = (("anchor", "positive"), ("a", "b"))
HARD = ("negatives", "negative")
SPELT = "anchor, positive and perhaps negatives, or a, b"


def _corpus(cfg: DataConfig) -> Source:
    def read(tally: files.Tally) -> Documents:
        for split in ("train", "valid", "test"):
            for record in islice(corpus.pairs(split, cfg.neighbours), cfg.limit or None):
                yield split, record

    identity = {"corpus": corpus.NAME, "sha256": corpus.sums(), "limit": cfg.limit}
    identity |= {"neighbours": cfg.neighbours} if cfg.neighbours else {}
    whole = SOURCES["corpus"](cfg).read  # one vocabulary for all objectives
    return Source(identity | {"records": "verses"}, 0, read, whole)


def _jsonl(cfg: DataConfig) -> Source:
    def texts(path: Path, policy: files.Policy) -> Iterator[Document]:
        for offset, _, found in files.objects(path, policy):
            record = record_of(found, files.at(path, offset), policy)
            if record is not None:
                yield record

    return local(cfg, {"records": SPELT}, texts)


def _datasets(cfg: DataConfig) -> Source:
    names = {"train": "train", "valid": cfg.valid_path, "test": cfg.test_path}

    def read_split(split: str, tally: files.Tally) -> Iterator[Document]:
        policy = files.Policy(cfg.errors, split, tally)
        stream = hub_stream.records(cfg.path, cfg.subset, cfg.revision, names[split])
        for number, found in enumerate(stream):
            record = record_of(found, f"{cfg.path}, record {number} of {names[split]}", policy)
            if record is not None:
                yield record

    whole = SOURCES["datasets"](cfg).identity
    return divided(cfg, whole | {"records": SPELT}, 0, read_split)


def record_of(found: dict[str, Any], where: str, policy: files.Policy) -> tuple[str, ...] | None:
    """The record that `found` spells; None: it was counted and left out."""
    names = next((pair for pair in PAIRS if all(name in found for name in pair)), None)
    if names is None:
        held = ", ".join(list(found)[:8])
        policy.refuse(f"{where} must hold {SPELT}; it holds: {held}")
        return None
    hard: Any = next((found[name] for name in HARD if found.get(name)), [])
    parts = [*((name, found[name]) for name in names)]
    parts += [("negatives", one) for one in (hard if isinstance(hard, list) else [hard])]
    texts = []
    for name, text in parts:
        if not isinstance(text, str) or not text.strip():
            policy.refuse(f"{where} has nothing under {name!r}; fill it or set data.errors to skip")
            return None
        sound = policy.wellformed(text, where)
        if sound is None:
            return None
        texts.append(sound)
    return tuple(texts)


# Sources with records: a function from DataConfig to a Source that reads them.
RECORDS: dict[str, Callable[[DataConfig], Source]] = {
    "corpus": _corpus,
    "jsonl": _jsonl,
    "datasets": _datasets,
}
