"""Sources of text: the embedded corpus, text files, JSON lines, Hugging Face datasets.

A source has an identity, which selects the token store that serves it, and yields `(split, text)`.
A split without its own path is cut from the training documents by a hash of their bytes. Therefore
it stays the same if files are renamed, added or reordered.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from data import corpus, hf_datasets, text_files
from data.chat import CHAT_TEMPLATES, parse_chat
from data.loss_weights import WeightedDocument, parse_weighted_document
from data.tokenizers import bpe_size
from errors import ConfigError, DataError
from settings.json_types import JsonObject
from settings.types import NonNegativeInt, Range, config, did_you_mean

ChatTemplateName = Literal["", "chatml", "vicuna", "llama2"]
HeldOutShare = Annotated[float, Range(low=0, high=0.5, open_low=True)]
Document = str | WeightedDocument | tuple[str, ...]  # A text, or the texts of a text pair.
DocumentStream = Iterator[tuple[str, Document]]  # (split, document)
LOG = logging.getLogger(__name__)


@config
class DataConfig:
    """The data of a run: source, splits, tokenizer and cache."""

    source: str = "corpus"  # Name of the source: corpus, text, jsonl or datasets.
    # Files, globs and folders, separated by commas (.gz .bz2 .xz .zst are decompressed); for
    # datasets: OWNER/NAME.
    path: str = ""
    # Files of the validation split; "": it is cut from path; for datasets: the name of a split.
    valid_path: str = ""
    # Files of the test split; "": it is cut from path; for datasets: the name of a split.
    test_path: str = ""
    # Share of the documents for validation if valid_path is empty; at least one document.
    valid_share: HeldOutShare = 0.01
    # Share of the documents for the test split if test_path is empty; at least one document.
    test_share: HeldOutShare = 0.01
    # For corpus: number of verses on each side of a verse that become its hard negatives.
    adjacent_negatives: NonNegativeInt = 0
    text_field: str = "text"  # For jsonl and datasets: name of the field with the text.
    # For jsonl: name of the field with a document's loss weight; "": all documents have weight 1.
    weight_field: str = ""
    # For jsonl: template of chats, of which only the replies have loss; "": lines are texts.
    chat_template: ChatTemplateName = ""
    # For text: separator that cuts a file into documents, \n is a line break; "": one document.
    document_separator: str = ""
    max_documents: NonNegativeInt = 0  # Maximum number of documents read from each path; 0: all.
    config_name: str = ""  # For datasets: name of the data set's configuration.
    revision: str = ""  # For datasets: full commit hash of the data set; required.
    # Tokenizer: bytes, bpe:SIZE (learned from the training split), or a tokenizer.json.
    tokenizer: str = "bytes"
    # Treatment of documents that are not UTF-8 or not JSON: raise an error, replace or skip.
    on_error: Literal["strict", "replace", "skip"] = "strict"
    cache: str = "~/.cache/isoflop"  # Folder of the token stores.
    verify: bool = True  # Whether a process checks the sha256 of a token store at first use.
    allow_changed: bool = False  # Whether a run may resume on other data.

    def check(self) -> None:
        """Checks that the settings agree with the source.

        Raises:
            ConfigError: if a setting is missing or belongs to another source.
        """
        if self.source not in SOURCES:
            hint = did_you_mean(self.source, SOURCES)
            raise ConfigError(f"data.source is {self.source!r}; {hint}")
        if self.source == "corpus" and (self.path or self.valid_path or self.test_path):
            raise ConfigError(
                "data.path is set but data.source is 'corpus'; set it to text or jsonl"
            )
        if self.source != "corpus" and not self.path:
            raise ConfigError(f"data.source {self.source!r} needs data.path")
        if self.source == "datasets" and not hf_datasets.COMMIT_HASH.fullmatch(self.revision):
            raise ConfigError(
                f"data.revision is {self.revision!r}; pin the data set to a full commit hash, "
                f"listed at huggingface.co/datasets/{self.path}/commits/main"
            )
        if (self.chat_template or self.weight_field) and (
            self.source != "jsonl" or (self.chat_template and self.weight_field)
        ):
            raise ConfigError(
                f"data.chat_template {self.chat_template!r} and data.weight_field "
                f"{self.weight_field!r} need data.source jsonl and exclude each other; leave them "
                "empty"
            )
        if self.adjacent_negatives and self.source != "corpus":
            raise ConfigError(
                f"data.adjacent_negatives {self.adjacent_negatives} are verses of the embedded "
                f"corpus, data.source is {self.source!r}; set it to 0"
            )
        if not self.tokenizer:
            raise ConfigError("data.tokenizer is empty; use bytes, bpe:8192 or a tokenizer.json")
        bpe_size(self.tokenizer)
        if not self.cache:
            raise ConfigError("data.cache is empty; name a folder for token stores")

    @property
    def has_weights(self) -> bool:
        """Whether documents have loss weights."""
        return bool(self.chat_template or self.weight_field)


@dataclass(frozen=True)
class TextSource:
    """A source of documents with an identity."""

    identity: JsonObject  # JSON; equal identities mean equal documents.
    size_bytes: int  # Size on disk; 0: unknown.
    read: Callable[[text_files.ReadStats], DocumentStream]
    # Reads the documents from which a vocabulary is learned; None: `read`.
    read_for_vocabulary: Callable[[text_files.ReadStats], DocumentStream] | None = None


def _corpus(cfg: DataConfig) -> TextSource:
    def read(stats: text_files.ReadStats) -> DocumentStream:
        for split in ("train", "valid", "test"):
            for document in islice(corpus.iter_documents(split), cfg.max_documents or None):
                yield split, document.text

    return TextSource(
        {"corpus": corpus.NAME, "sha256": corpus.checksums(), "limit": cfg.max_documents}, 0, read
    )


def _text(cfg: DataConfig) -> TextSource:
    separator = cfg.document_separator.replace("\\n", "\n").encode()

    def read_texts(path: Path, policy: text_files.ErrorPolicy) -> Iterator[str]:
        return (text for _, text in text_files.iter_texts(path, separator, policy))

    return make_local_source(cfg, {"separator": separator.decode()}, read_texts)


def _jsonl(cfg: DataConfig) -> TextSource:
    def read_texts(path: Path, policy: text_files.ErrorPolicy) -> Iterator[str]:
        return (line.text for line in text_files.iter_json_texts(path, cfg.text_field, policy))

    def read_weighted(path: Path, policy: text_files.ErrorPolicy) -> Iterator[WeightedDocument]:
        for line in text_files.iter_json_texts(path, cfg.text_field, policy):
            location = text_files.format_location(path, line.offset)
            document = parse_weighted_document(
                line.record, line.text, cfg.weight_field, location, policy
            )
            if document is not None:
                yield document

    def read_chats(path: Path, policy: text_files.ErrorPolicy) -> Iterator[WeightedDocument]:
        for offset, _, record in text_files.iter_json(path, policy):
            location = text_files.format_location(path, offset)
            document = parse_chat(record, CHAT_TEMPLATES[cfg.chat_template], location, policy)
            if document is not None:
                yield document

    if cfg.chat_template:
        return make_local_source(cfg, {"chat": CHAT_TEMPLATES[cfg.chat_template]}, read_chats)
    if cfg.weight_field:
        return make_local_source(
            cfg, {"field": cfg.text_field, "weight": cfg.weight_field}, read_weighted
        )
    return make_local_source(cfg, {"field": cfg.text_field}, read_texts)


def make_local_source(cfg: DataConfig, options: JsonObject, read_file: Callable) -> TextSource:
    """Returns a source of local files.

    Args:
        cfg: The settings of the data.
        options: Entries of the identity beside the files.
        read_file: A function of (path, policy) that yields the documents of one file.
    """
    named = {"train": cfg.path, "valid": cfg.valid_path, "test": cfg.test_path}
    paths = {split: text_files.expand_globs(path) for split, path in named.items() if path}
    _check_disjoint(paths)

    def read_split(split: str, stats: text_files.ReadStats) -> Iterator[Document]:
        for path in paths[split]:
            is_empty = True
            for document in read_file(path, text_files.ErrorPolicy(cfg.on_error, split, stats)):
                is_empty = is_empty and document == ""
                yield document
            if is_empty:
                LOG.warning("%s: the file has no text", path)

    files = {split: [_file_identity(p) for p in listed] for split, listed in paths.items()}
    size = sum(identity[1] for identities in files.values() for identity in identities)
    identity = {"source": cfg.source, "files": files, "errors": cfg.on_error, **options}
    return make_split_source(cfg, identity, size, read_split)


def _datasets(cfg: DataConfig) -> TextSource:
    names = {"train": "train", "valid": cfg.valid_path, "test": cfg.test_path}

    def read_split(split: str, stats: text_files.ReadStats) -> Iterator[str]:
        policy = text_files.ErrorPolicy(cfg.on_error, split, stats)
        records = hf_datasets.iter_examples(cfg.path, cfg.config_name, cfg.revision, names[split])
        for number, record in enumerate(records):
            location = f"{cfg.path}, document {number} of {names[split]}"
            if not isinstance(record.get(cfg.text_field), str):
                fields = ", ".join(list(record)[:8])
                policy.reject_document(
                    f"{location}: no text under {cfg.text_field!r}; it holds: {fields}; set "
                    "data.text_field"
                )
                continue
            text = policy.check_unicode(record[cfg.text_field], location)
            if text is not None:
                yield text

    identity = {
        "source": "datasets",
        "data_set": [cfg.path, cfg.config_name, cfg.revision],
        "splits": names,
        "field": cfg.text_field,
        "errors": cfg.on_error,
    }
    return make_split_source(cfg, identity, 0, read_split)


def make_split_source(
    cfg: DataConfig, identity: dict, size_bytes: int, read_split: Callable
) -> TextSource:
    """Returns a source that reads the splits with a path and cuts the others from training.

    Args:
        cfg: The settings of the data.
        identity: The identity, without shares and limit.
        size_bytes: Size on disk; 0: unknown.
        read_split: A function of (split, stats) that yields the documents of a split.
    """
    shares = {"valid": cfg.valid_share, "test": cfg.test_share}
    named = {"train": cfg.path, "valid": cfg.valid_path, "test": cfg.test_path}
    missing = {split: share for split, share in shares.items() if not named[split]}

    def read(stats: text_files.ReadStats) -> DocumentStream:
        for split in filter(named.get, named):
            documents = islice(read_split(split, stats), cfg.max_documents or None)
            if split == "train" and missing:
                yield from assign_splits(documents, missing)
            else:
                yield from ((split, document) for document in documents)

    return TextSource(identity | {"shares": missing, "limit": cfg.max_documents}, size_bytes, read)


def assign_splits(documents: Iterator[Document], shares: dict[str, float]) -> DocumentStream:
    """Assigns every document to train or to a split of `shares`, by the hash of its bytes alone.

    Equal documents get the same split, and so do text pairs with the same first text. If no hash
    falls into a split, the split takes the documents of the lowest hash. For that purpose as many
    distinct documents as there are splits are kept back until no split is empty.
    """
    empty_splits = list(shares)
    waiting: dict[int, list[Document]] = {}
    for document in documents:
        key = document if isinstance(document, str) else _split_key(document)
        if not key:
            yield "train", document  # An empty document is only counted.
            continue
        code = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
        split = _split_for(code / 2**64, shares)
        if split != "train":
            empty_splits = [name for name in empty_splits if name != split]
            yield split, document
        elif not empty_splits:
            for earlier in [d for code in sorted(waiting) for d in waiting.pop(code)]:
                yield "train", earlier
            yield "train", document
        else:
            waiting.setdefault(code, []).append(document)
            if len(waiting) > len(shares):
                yield from (("train", d) for d in waiting.pop(max(waiting)))
    for code in sorted(waiting):
        split = empty_splits.pop(0) if empty_splits else "train"
        yield from ((split, d) for d in waiting[code])


def _split_key(document: WeightedDocument | tuple[str, ...]) -> str:
    return document.text if isinstance(document, WeightedDocument) else document[0]


def _split_for(fraction: float, shares: dict[str, float]) -> str:
    for split, share in shares.items():
        if fraction < share:
            return split
        fraction -= share
    return "train"


def _check_disjoint(paths: dict[str, list[Path]]) -> None:
    splits: dict[Path, str] = {}
    for split, listed in paths.items():
        for path in listed:
            first = splits.setdefault(path.resolve(), split)
            if first != split:
                raise DataError(
                    f"{path} is in the {first} and in the {split} split; remove it from one"
                )


def _file_identity(path: Path) -> list:
    """Returns path, size and modification time, which change if the file changes.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


# To add a source, write its function from DataConfig to TextSource and add it here.
SOURCES: dict[str, Callable[[DataConfig], TextSource]] = {
    "corpus": _corpus,
    "text": _text,
    "jsonl": _jsonl,
    "datasets": _datasets,
}
