"""Sources of documents: the embedded corpus, text files, JSON lines, and images with texts."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data import corpus
from data.chats.templates import MARKER_RULE, TOKENIZER_TEMPLATE, find_template, parse_chat
from data.groups.documents import iter_grouped
from data.images import digits, records
from data.loss_weights import WeightedDocument, parse_weighted_document
from data.readers import json_lines, read_policy, text_files
from data.readers.read_stats import ReadStats
from data.settings import DataConfig
from data.sources.source import TextSource, make_local_source
from data.splits import Document, DocumentStream, HasTokens, contains_text
from data.tokenizers import ByteTokenizer, open_tokenizer


def open_corpus(cfg: DataConfig) -> TextSource:
    """Returns the documents of the embedded corpus."""

    def read(stats: ReadStats, has_tokens: HasTokens = contains_text) -> DocumentStream:
        for split in ("train", "valid", "test"):
            for document in islice(corpus.iter_documents(split), cfg.max_documents or None):
                yield split, document.text

    return TextSource(
        {"corpus": corpus.NAME, "sha256": corpus.checksums(), "limit": cfg.max_documents}, 0, read
    )


def open_text(cfg: DataConfig) -> TextSource:
    """Returns the documents of text files."""
    separator = text_files.parse_separator(cfg.document_separator)

    def read_texts(path: Path, policy: read_policy.ErrorPolicy) -> Iterator[Document]:
        for offset, raw in text_files.iter_raw_texts(path, separator, policy):
            document = policy.decode_document(raw, path, offset)
            if document is not None:
                yield document

    return make_local_source(cfg, {"separator": separator.decode()}, read_texts)


def open_jsonl(cfg: DataConfig) -> TextSource:
    """Returns the texts, weighted texts, grouped texts or chats of files of JSON lines."""

    def read_texts(path: Path, policy: read_policy.ErrorPolicy) -> Iterator[Document]:
        return json_lines.iter_json_documents(path, cfg.text_field, policy)

    def read_weighted(path: Path, policy: read_policy.ErrorPolicy) -> Iterator[WeightedDocument]:
        for line in json_lines.iter_json_texts(path, cfg.text_field, policy):
            location = read_policy.format_location(path, line.offset)
            document = parse_weighted_document(
                line.record, line.text, cfg.weight_field, location, policy
            )
            if document is not None:
                yield document

    def read_chats(path: Path, policy: read_policy.ErrorPolicy) -> Iterator[WeightedDocument]:
        for offset, _, record in json_lines.iter_json(path, policy):
            location = read_policy.format_location(path, offset)
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


def open_digits(cfg: DataConfig) -> TextSource:
    """Returns captions of drawn digits with their pictures."""
    identity = {"source": "digits", **digits.identity(cfg.images)}
    return TextSource(identity, 0, lambda stats, has_tokens=None: digits.iter_records(cfg.images))


def open_images(cfg: DataConfig) -> TextSource:
    """Returns the texts of files of JSON lines with the images that they name."""

    def read_records(path: Path, policy: read_policy.ErrorPolicy) -> Iterator[Document]:
        return records.read_image_texts(path, policy, cfg.images, cfg.text_field)

    paths = cfg.path, cfg.valid_path, cfg.test_path
    return make_local_source(cfg, records.identity(paths, cfg.images, cfg.text_field), read_records)
