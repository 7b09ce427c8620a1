"""Sources of text: the embedded corpus, text files, JSON lines, Hugging Face datasets.

A source has an identity, which selects the token store that serves it, and yields `(split, text)`.
A split without its own path is held out of the training documents (`data.splits`).
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

from data import arrow_files, corpus, hf_datasets, input_files, text_files
from data.chats.templates import MARKER_RULE, TOKENIZER_TEMPLATE, find_template, parse_chat
from data.groups.documents import GroupConfig, iter_grouped
from data.input_files import ReadStats
from data.loss_weights import WeightedDocument, parse_weighted_document
from data.splits import (
    Document,
    DocumentStream,
    HasTokens,
    as_long_text,
    assign_splits,
    contains_text,
    plan_hold_out,
)
from data.tokenizers import ByteTokenizer, bpe_size, open_tokenizer
from errors import ConfigError, DataError
from settings.json_types import JsonObject
from settings.types import Fraction, NonNegativeInt, Range, config, did_you_mean

ChatTemplateName = Literal["", "chatml", "vicuna", "llama2", "tokenizer"]
HeldOutShare = Annotated[float, Range(low=0, high=0.5, open_low=True)]
LOG = logging.getLogger(__name__)
SOURCES_BY_SUFFIX = {
    **dict.fromkeys((".txt", ".text", ".md"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys(arrow_files.SUFFIXES, "datasets"),
}
SPLIT_RULE = 2  # Version of the rules in `data.splits`.


@config
class DataConfig:
    """The data of a run: source, splits, tokenizer and cache."""

    # Name of the source: corpus, text, jsonl or datasets. If it is corpus and path is set, the path
    # selects the source: .txt and .md are text, .jsonl is jsonl, .parquet and .arrow are datasets.
    source: str = "corpus"
    # Files, globs and folders, separated by commas (.gz .bz2 .xz .zst are decompressed); for
    # datasets: a folder with Parquet or Arrow files, or OWNER/NAME.
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
    groups: GroupConfig = GroupConfig()
    # For jsonl: template of chats, of which only the replies have loss; "": lines are texts.
    # tokenizer is the template in the files of the tokenizer's model, a program in Jinja.
    chat_template: ChatTemplateName = ""
    # For text: separator that cuts a file into documents, \n is a line break; "": one document.
    document_separator: str = ""
    # Largest share of the documents or 13-grams of a held-out split that other splits may have too.
    max_shared: Fraction = 0.001
    max_documents: NonNegativeInt = 0  # Maximum number of documents read from each path; 0: all.
    config_name: str = ""  # For datasets: name of the data set's configuration.
    # For datasets: full commit hash of the data set; required for OWNER/NAME.
    revision: str = ""
    # Tokenizer: bytes, bpe:SIZE (learned from the training split), a tokenizer.json, a folder of a
    # model, or hf:NAME (owner/name[@revision] of the Hugging Face hub).
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
        if self.kind == "corpus" and (self.path or self.valid_path or self.test_path):
            raise ConfigError(
                f"data.path is {self.path!r} but data.source is 'corpus'; set it to text, jsonl or "
                "datasets"
            )
        if self.kind != "corpus" and not self.path:
            raise ConfigError(f"data.source {self.source!r} needs data.path")
        if self.revision and not hf_datasets.COMMIT_HASH.fullmatch(self.revision):
            raise ConfigError(
                f"data.revision is {self.revision!r}; pin the data set to a full commit hash, "
                f"listed at huggingface.co/datasets/{self.path}/commits/main"
            )
        if (self.chat_template or self.weight_field) and (
            self.kind != "jsonl" or (self.chat_template and self.weight_field)
        ):
            raise ConfigError(
                f"data.chat_template {self.chat_template!r} and data.weight_field "
                f"{self.weight_field!r} need data.source jsonl and exclude each other; leave them "
                "empty"
            )
        self.groups.check_source(self.kind, self.has_weights)
        if self.adjacent_negatives and self.kind != "corpus":
            raise ConfigError(
                f"data.adjacent_negatives {self.adjacent_negatives} are verses of the embedded "
                f"corpus, the source is {self.kind!r}; set it to 0"
            )
        if not self.tokenizer:
            raise ConfigError("data.tokenizer is empty; use bytes, bpe:8192 or a tokenizer.json")
        if bpe_size(self.tokenizer) and self.chat_template == TOKENIZER_TEMPLATE:
            raise ConfigError(
                f"data.chat_template is 'tokenizer', but {self.tokenizer} is a vocabulary that is "
                "learned, without a template; use chatml, vicuna or llama2"
            )
        if not self.cache:
            raise ConfigError("data.cache is empty; name a folder for token stores")

    @property
    def kind(self) -> str:
        """The name of the source, which a path determines if `source` is the default."""
        if self.source != "corpus":
            return self.source
        path = Path(self.path.split(",")[0].strip())
        is_packed = path.suffix.lower() in input_files.DECOMPRESSORS
        return SOURCES_BY_SUFFIX.get(Path(path.stem if is_packed else path).suffix, self.source)

    @property
    def has_weights(self) -> bool:
        """Whether documents have loss weights."""
        return bool(self.chat_template or self.weight_field)


class ReadDocuments(Protocol):
    """A function that reads a source."""

    def __call__(self, stats: ReadStats, has_tokens: HasTokens = contains_text) -> DocumentStream:
        """Yields the documents of all splits.

        Args:
            stats: Statistics, which are updated.
            has_tokens: Whether a document has tokens; others fill no split.
        """


@dataclass(frozen=True)
class TextSource:
    """A source of documents with an identity."""

    identity: JsonObject  # JSON; equal identities mean equal documents.
    size_bytes: int  # Size on disk; 0: unknown.
    read: ReadDocuments
    # Reads the documents from which a vocabulary is learned; None: `read`.
    read_for_vocabulary: ReadDocuments | None = None
    notes: tuple[str, ...] = ()  # Remarks on files that are left out.


def _corpus(cfg: DataConfig) -> TextSource:
    def read(stats: ReadStats, has_tokens: HasTokens = contains_text) -> DocumentStream:
        for split in ("train", "valid", "test"):
            for document in islice(corpus.iter_documents(split), cfg.max_documents or None):
                yield split, document.text

    return TextSource(
        {"corpus": corpus.NAME, "sha256": corpus.checksums(), "limit": cfg.max_documents}, 0, read
    )


def _text(cfg: DataConfig) -> TextSource:
    separator = text_files.parse_separator(cfg.document_separator)

    def read_texts(path: Path, policy: text_files.ErrorPolicy) -> Iterator[Document]:
        for offset, raw in text_files.iter_raw_texts(path, separator, policy):
            document = policy.decode_document(raw, path, offset)
            if document is not None:
                yield document

    return make_local_source(cfg, {"separator": separator.decode()}, read_texts)


def _jsonl(cfg: DataConfig) -> TextSource:
    def read_texts(path: Path, policy: text_files.ErrorPolicy) -> Iterator[Document]:
        return text_files.iter_json_documents(path, cfg.text_field, policy)

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
            document = parse_chat(record, template, location, policy)
            if document is not None:
                yield document

    if cfg.chat_template:
        is_own = cfg.chat_template == TOKENIZER_TEMPLATE
        template = find_template(
            cfg.chat_template, open_tokenizer(cfg.tokenizer) if is_own else ByteTokenizer()
        )
        identity = {"chat": template.as_jinja(bos=False), "markers": MARKER_RULE}
        return make_local_source(cfg, identity, read_chats)
    if cfg.groups.field:
        fields = cfg.text_field, cfg.groups.field
        return make_local_source(
            cfg,
            {"field": fields[0], "group": fields[1]},
            lambda path, policy: iter_grouped(path, policy, *fields),
        )
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
    files_by_split = {split: input_files.find_files(path) for split, path in named.items() if path}
    paths = {split: listed for split, (listed, _) in files_by_split.items()}
    _check_disjoint(paths)

    def read_split(split: str, stats: ReadStats) -> Iterator[Document]:
        policy = text_files.ErrorPolicy(cfg.on_error, split, stats)
        for path in paths[split]:
            is_empty, n_skipped = True, stats.skipped.total()
            for document in read_file(path, policy):
                is_empty = is_empty and document == ""
                yield document
            if is_empty and stats.warns and n_skipped == stats.skipped.total():
                LOG.warning("%s: the file has no text", path)

    files = {split: [_file_identity(p) for p in listed] for split, listed in paths.items()}
    size = sum(identity[1] for identities in files.values() for identity in identities)
    identity = {"source": cfg.kind, "files": files, "errors": cfg.on_error, **options}
    source = make_split_source(cfg, identity, size, read_split)
    notes = tuple(note for _, listed in files_by_split.values() for note in listed)
    return dataclasses.replace(source, notes=notes)


def _datasets(cfg: DataConfig) -> TextSource:
    examples = open_examples(cfg, (cfg.text_field,))

    def read_split(split: str, stats: ReadStats) -> Iterator[str]:
        policy = text_files.ErrorPolicy(cfg.on_error, split, stats)
        for location, record in examples.read(split, policy):
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

    identity = examples.identity | {"field": cfg.text_field}
    return make_split_source(cfg, identity, examples.size_bytes, read_split)


class Examples(NamedTuple):
    """The records of a data set, on disk or streamed from the hub."""

    identity: JsonObject
    size_bytes: int
    # A function of (split, policy) that yields locations and records.
    read: Callable[[str, text_files.ErrorPolicy], Iterator[tuple[str, JsonObject]]]


def open_examples(cfg: DataConfig, columns: tuple[str, ...] = ()) -> Examples:
    """Returns the records of local Parquet and Arrow files, or of a data set of the hub.

    Args:
        cfg: The settings of the data.
        columns: The columns that are needed; (): all columns.

    Raises:
        ConfigError: if the data set is on the hub and has no pinned revision.
    """
    names = {"train": "train", "valid": cfg.valid_path, "test": cfg.test_path}
    identity: JsonObject = {"source": "datasets", "splits": names, "errors": cfg.on_error}
    if not cfg.revision and arrow_files.is_local(cfg.path):
        paths = {s: arrow_files.find_split(cfg.path, name) for s, name in names.items() if name}
        _check_disjoint(paths)
        files = {split: [_file_identity(p) for p in listed] for split, listed in paths.items()}
        return Examples(
            identity | {"files": files},
            sum(file[1] for listed in files.values() for file in listed),
            lambda split, policy: arrow_files.iter_records(paths[split], columns, policy),
        )
    if not cfg.revision:
        raise ConfigError(
            f"data.revision is empty, and {cfg.path} is no folder here; pin the data set to a full "
            f"commit hash, listed at huggingface.co/datasets/{cfg.path}/commits/main"
        )

    def read(split: str, policy: text_files.ErrorPolicy) -> Iterator[tuple[str, JsonObject]]:
        del policy  # A stream that breaks is opened again.
        records = hf_datasets.iter_examples(cfg.path, cfg.config_name, cfg.revision, names[split])
        for number, record in enumerate(records):
            yield f"{cfg.path}, document {number} of {names[split]}", record

    return Examples(identity | {"data_set": [cfg.path, cfg.config_name, cfg.revision]}, 0, read)


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

    def read_documents(split: str, stats: ReadStats) -> Iterator[Document]:
        return map(as_long_text, islice(read_split(split, stats), cfg.max_documents or None))

    def read(stats: ReadStats, has_tokens: HasTokens = contains_text) -> DocumentStream:
        for split in filter(named.get, named):
            if split == "train" and missing:
                first_pass = read_documents(split, ReadStats(warns=False))
                plan = plan_hold_out(first_pass, missing, has_tokens)
                stats.hold_out = plan.describe()
                yield from assign_splits(read_documents(split, stats), plan)
            else:
                yield from ((split, document) for document in read_documents(split, stats))

    rules = {"shares": missing, "limit": cfg.max_documents, "split_rule": SPLIT_RULE}
    return TextSource(identity | rules, size_bytes, read)


def _check_disjoint(paths: dict[str, list[Path]]) -> None:
    splits: dict[input_files.FileId, str] = {}
    for split, listed in paths.items():
        for path in listed:
            first = splits.setdefault(input_files.file_id(path), split)
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
