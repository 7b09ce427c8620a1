"""Where text comes from: the embedded corpus, text files, JSON lines, Hugging Face datasets.

A source names what it reads (its identity decides which token store serves it) and yields
`(split, text)`. A split without a path of its own is cut from the training documents by a hash of
their bytes, so that it stays the same when files are renamed, added or put in another order.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from data import corpus, files, hub_stream
from data.chat import TEMPLATES, chat
from data.tokenizers import bpe_size
from data.weighed import Weighed, weighted
from errors import ConfigError, DataError
from schema import Natural, Range, config, nearest

Template = Literal["", "chatml", "vicuna", "llama2"]
Held = Annotated[float, Range(low=0, high=0.5, open_low=True)]
Document = str | Weighed | tuple[str, ...]  # a text, or texts that belong together
Documents = Iterator[tuple[str, Document]]  # (split, document)
LOG = logging.getLogger(__name__)


@config
class DataConfig:
    source: str = "corpus"  # a name of SOURCES
    path: str = ""  # files, globs, folders, by commas; .gz .bz2 .xz .zst; datasets: OWNER/NAME
    valid_path: str = ""  # "": cut from path; datasets: the name of a split of the data set
    test_path: str = ""
    valid_share: Held = 0.01  # of the documents, where there is no valid_path; at least one
    test_share: Held = 0.01
    neighbours: Natural = 0  # corpus: verses on each side of one that are its hard negatives
    field: str = "text"  # that holds the text; of jsonl and datasets
    weight: str = ""  # jsonl: the field with a document's weight in the loss; "": all count alike
    chat: Template = ""  # jsonl: lines hold chats, framed so; replies alone count
    separator: str = ""  # text: cuts a file into documents, \n is a line break; "": one document
    limit: Natural = 0  # documents read of each path, 0: all
    subset: str = ""  # datasets: the configuration of the data set
    revision: str = ""  # datasets: the full commit hash, required
    tokenizer: str = "bytes"  # bytes, bpe:SIZE (trained on the training split), a tokenizer.json
    errors: Literal["strict", "replace", "skip"] = "strict"  # for what is not UTF-8 or not JSON
    cache: str = "~/.cache/isoflop"  # folder of token stores
    verify: bool = True  # compare the sha256 of a token store when a process first opens it
    allow_changed: bool = False  # let a run resume on other data

    def check(self) -> None:
        if self.source not in SOURCES:
            hint = nearest(self.source, SOURCES)
            raise ConfigError(f"data.source is {self.source!r}; {hint}")
        if self.source == "corpus" and (self.path or self.valid_path or self.test_path):
            raise ConfigError(
                "data.path is set but data.source is 'corpus'; set it to text or jsonl"
            )
        if self.source != "corpus" and not self.path:
            raise ConfigError(f"data.source {self.source!r} needs data.path")
        if self.source == "datasets" and not hub_stream.PINNED.fullmatch(self.revision):
            raise ConfigError(
                f"data.revision is {self.revision!r}; pin the data set to a full commit hash, "
                f"listed at huggingface.co/datasets/{self.path}/commits/main"
            )
        if (self.chat or self.weight) and (self.source != "jsonl" or (self.chat and self.weight)):
            raise ConfigError(
                f"data.chat {self.chat!r} and data.weight {self.weight!r} are of data.source "
                "jsonl, one at a time; leave them empty"
            )
        if self.neighbours and self.source != "corpus":
            raise ConfigError(
                f"data.neighbours {self.neighbours} are verses of the embedded corpus, data.source "
                f"is {self.source!r}; set it to 0"
            )
        if not self.tokenizer:
            raise ConfigError("data.tokenizer is empty; use bytes, bpe:8192 or a tokenizer.json")
        bpe_size(self.tokenizer)
        if not self.cache:
            raise ConfigError("data.cache is empty; name a folder for token stores")

    @property
    def weighs(self) -> bool:
        """Whether parts of documents count unequally."""
        return bool(self.chat or self.weight)


@dataclass(frozen=True)
class Source:
    identity: dict[str, Any]  # JSON; equal identities give equal documents
    size: int  # bytes on disk, 0: unknown
    read: Callable[[files.Tally], Documents]
    vocabulary: Callable[[files.Tally], Documents] | None = None  # to learn one from; None: `read`


def _corpus(cfg: DataConfig) -> Source:
    def read(tally: files.Tally) -> Documents:
        for split in ("train", "valid", "test"):
            for passage in islice(corpus.passages(split), cfg.limit or None):
                yield split, passage.text

    return Source({"corpus": corpus.NAME, "sha256": corpus.sums(), "limit": cfg.limit}, 0, read)


def _text(cfg: DataConfig) -> Source:
    separator = cfg.separator.replace("\\n", "\n").encode()

    def texts(path: Path, policy: files.Policy) -> Iterator[str]:
        return (text for _, text in files.texts(path, separator, policy))

    return local(cfg, {"separator": separator.decode()}, texts)


def _jsonl(cfg: DataConfig) -> Source:
    def texts(path: Path, policy: files.Policy) -> Iterator[str]:
        return (line.text for line in files.lines(path, cfg.field, policy))

    def weighed(path: Path, policy: files.Policy) -> Iterator[Weighed]:
        for line in files.lines(path, cfg.field, policy):
            where = files.at(path, line.offset)
            found = weighted(line.record, line.text, cfg.weight, where, policy)
            if found is not None:
                yield found

    def chats(path: Path, policy: files.Policy) -> Iterator[Weighed]:
        for offset, _, record in files.objects(path, policy):
            found = chat(record, TEMPLATES[cfg.chat], files.at(path, offset), policy)
            if found is not None:
                yield found

    if cfg.chat:
        return local(cfg, {"chat": TEMPLATES[cfg.chat]}, chats)
    if cfg.weight:
        return local(cfg, {"field": cfg.field, "weight": cfg.weight}, weighed)
    return local(cfg, {"field": cfg.field}, texts)


def local(cfg: DataConfig, options: dict[str, Any], texts: Callable) -> Source:
    """A source of local files, whose `texts(path, policy)` reads one of them."""
    named = {"train": cfg.path, "valid": cfg.valid_path, "test": cfg.test_path}
    paths = {split: files.expand(path) for split, path in named.items() if path}
    _disjoint(paths)

    def read_split(split: str, tally: files.Tally) -> Iterator[Document]:
        for path in paths[split]:
            found = False
            for text in texts(path, files.Policy(cfg.errors, split, tally)):
                found = found or text != ""
                yield text
            if not found:
                LOG.warning("%s: no text in it", path)

    listed = {split: [_stamp(p) for p in found] for split, found in paths.items()}
    size = sum(stamp[1] for stamps in listed.values() for stamp in stamps)
    identity = {"source": cfg.source, "files": listed, "errors": cfg.errors, **options}
    return divided(cfg, identity, size, read_split)


def _datasets(cfg: DataConfig) -> Source:
    names = {"train": "train", "valid": cfg.valid_path, "test": cfg.test_path}

    def read_split(split: str, tally: files.Tally) -> Iterator[str]:
        policy = files.Policy(cfg.errors, split, tally)
        records = hub_stream.records(cfg.path, cfg.subset, cfg.revision, names[split])
        for number, record in enumerate(records):
            where = f"{cfg.path}, document {number} of {names[split]}"
            if not isinstance(record.get(cfg.field), str):
                held = ", ".join(list(record)[:8])
                policy.refuse(f"{where}: no text under {cfg.field!r}; it holds: {held}")
                continue
            text = policy.wellformed(record[cfg.field], where)
            if text is not None:
                yield text

    identity = {
        "source": "datasets",
        "data_set": [cfg.path, cfg.subset, cfg.revision],
        "splits": names,
        "field": cfg.field,
        "errors": cfg.errors,
    }
    return divided(cfg, identity, 0, read_split)


def divided(cfg: DataConfig, identity: dict, size: int, read_split: Callable) -> Source:
    """Splits with a path are read; those without take their share of the training documents."""
    shares = {"valid": cfg.valid_share, "test": cfg.test_share}
    named = {"train": cfg.path, "valid": cfg.valid_path, "test": cfg.test_path}
    missing = {split: share for split, share in shares.items() if not named[split]}

    def read(tally: files.Tally) -> Documents:
        for split in filter(named.get, named):
            texts = islice(read_split(split, tally), cfg.limit or None)
            if split == "train" and missing:
                yield from divide(texts, missing)
            else:
                yield from ((split, text) for text in texts)

    return Source(identity | {"shares": missing, "limit": cfg.limit}, size, read)


def divide(texts: Iterator[Document], shares: dict[str, float]) -> Documents:
    """Give every document to train or to a split of `shares`, by the hash of its bytes alone.

    Equal documents get the same split, and so do records with the same first text. A split that no
    hash fell into takes the documents of the lowest hash: as many distinct ones as there are splits
    are held back until none is empty.
    """
    empty = list(shares)
    held: dict[int, list[Document]] = {}
    for text in texts:
        key = text if isinstance(text, str) else _first(text)
        if not key:
            yield "train", text  # only to be counted
            continue
        code = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
        split = _share(code / 2**64, shares)
        if split != "train":
            empty = [name for name in empty if name != split]
            yield split, text
        elif not empty:
            for other in [t for code in sorted(held) for t in held.pop(code)]:
                yield "train", other
            yield "train", text
        else:
            held.setdefault(code, []).append(text)
            if len(held) > len(shares):
                yield from (("train", t) for t in held.pop(max(held)))
    for code in sorted(held):
        split = empty.pop(0) if empty else "train"
        yield from ((split, t) for t in held[code])


def _first(document: Weighed | tuple[str, ...]) -> str:
    return document.text if isinstance(document, Weighed) else document[0]


def _share(place: float, shares: dict[str, float]) -> str:
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


def _disjoint(paths: dict[str, list[Path]]) -> None:
    seen: dict[Path, str] = {}
    for split, listed in paths.items():
        for path in listed:
            other = seen.setdefault(path.resolve(), split)
            if other != split:
                raise DataError(f"{path} is in the {other} and in the {split} split; leave one out")


def _stamp(path: Path) -> list:
    """What tells that a file is still the one that was read."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


# To add a source: write its function from DataConfig to Source and name it here.
SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "corpus": _corpus,
    "text": _text,
    "jsonl": _jsonl,
    "datasets": _datasets,
}
