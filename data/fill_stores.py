"""Encodes the documents of a source in blocks and adds each to the token store of its split."""

import logging
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from data.chats.marked_text import encode_parts, without_frame
from data.images.settings import ImageText
from data.loss_weights import PreferenceRecord, WeightedDocument, WeightedPart, in_order
from data.progress import progress
from data.readers.long_text import LongText
from data.readers.read_stats import ReadStats
from data.round_trip import RoundTrip
from data.settings import DataConfig
from data.sources import IMAGE_SOURCES, StoreKind
from data.sources.source import TextSource
from data.splits import SPLITS, Document, HasTokens, split_key
from data.store_writer import TokenStoreWriter
from data.tokenizers import Tokenizer, iter_pieces
from errors import DataError

LOG = logging.getLogger(__name__)
BLOCK_CHARACTERS = 4 << 20  # Number of characters that are encoded at a time.
PROBE_CHARACTERS = 1 << 12  # Part of a text that is searched for tokens at a time.
PIECES_PER_BATCH = 4  # Number of pieces of a long text that are encoded at a time.


def document_texts(document: Document) -> Iterator[str]:
    """Yields all texts of a record, or the text of a document, a long one in pieces."""
    if isinstance(document, LongText):
        yield from document.pieces()
    elif isinstance(document, PreferenceRecord):
        yield from (text.text for text in document.texts)
    elif isinstance(document, tuple):
        yield from document
    else:
        yield split_key(document)


def _has_tokens(tokenizer: Tokenizer) -> HasTokens:
    def is_encodable(text: str) -> bool:
        starts = range(0, len(text), PROBE_CHARACTERS)
        return any(len(tokenizer.encode([text[i : i + PROBE_CHARACTERS]])[0]) for i in starts)

    def has_tokens(document: Document) -> bool:
        are_found = map(is_encodable, document_texts(document))
        # A record needs all of its texts.
        is_record = isinstance(document, tuple | PreferenceRecord)
        return all(are_found) if is_record else any(are_found)

    return has_tokens


def write_stores(
    cfg: DataConfig, source: TextSource, tokenizer: Tokenizer, folder: Path, kind: StoreKind
) -> None:
    """Reads a source and writes a store for each split into `folder`.

    Raises:
        DataError: if a split has no tokens.
    """
    stats = ReadStats()
    has_records = kind != "documents"
    has_weights = cfg.has_weights and not has_records
    writers = {
        split: TokenStoreWriter(
            *(folder / split, tokenizer),
            has_records=has_records,
            has_weights=has_weights,
            has_groups=bool(cfg.groups.field) and not has_records,
            image_shape=cfg.images.shape if cfg.kind in IMAGE_SOURCES else (),
        )
        for split in SPLITS
    }
    round_trips = {split: RoundTrip(tokenizer) for split in SPLITS}
    with progress("building the token store", source.size_bytes) as show:
        block: list[tuple[str, Document]] = []
        block_size = 0
        for split, document in source.read(stats, _has_tokens(tokenizer)):
            is_long = isinstance(document, LongText)
            if not is_long:
                block.append((split, document))
                block_size += sum(map(len, document_texts(document)))
                block_size += document.image.nbytes if isinstance(document, ImageText) else 0
            if is_long or block_size >= BLOCK_CHARACTERS or len(block) >= BLOCK_CHARACTERS >> 8:
                _add_block(writers, tokenizer, block, round_trips)
                show(stats.bytes_read, _format_token_count(writers))
                block, block_size = [], 0
            if isinstance(document, LongText):
                for _ in _add_long_text(writers[split], tokenizer, document, round_trips[split]):
                    show(stats.bytes_read, _format_token_count(writers))
        _add_block(writers, tokenizer, block, round_trips)
        show(stats.bytes_read, _format_token_count(writers))
    if stats.hold_out:
        print(f"{cfg.path}: {stats.hold_out}", file=sys.stderr)
    shares = {split: round_trip.share for split, round_trip in round_trips.items()}
    _finish_stores(cfg, source, writers, stats, shares)


def _finish_stores(
    cfg: DataConfig,
    source: TextSource,
    writers: dict[str, TokenStoreWriter],
    stats: ReadStats,
    decodes_back: dict[str, float],
) -> None:
    """Writes the indices of the stores.

    Raises:
        DataError: if a split has no tokens.
    """
    for split, writer in writers.items():
        if not writer.n_tokens:
            setting = "data.path" if split == "train" else f"data.{split}_path"
            counts = ", ".join(f"{w.n_documents} {name}" for name, w in writers.items())
            raise DataError(
                f"no tokens in the {split} split of {cfg.path or cfg.source} (documents: {counts}; "
                f"empty {writer.n_dropped}, skipped {stats.skipped[split]}); set {setting}, or "
                "data.document_separator to cut files into documents"
            )
        errors = {"skipped": stats.skipped[split], "replaced": stats.replaced[split]}
        metadata = {"split": split, **errors, "hold_out": stats.hold_out}
        metadata["decodes_back"] = decodes_back[split]
        writer.finish({**metadata, "source": source.identity})
        if any(errors.values()):
            LOG.warning("%s: unreadable documents of the %s split: %s", cfg.path, split, errors)


def _add_long_text(
    writer: TokenStoreWriter, tokenizer: Tokenizer, document: LongText, round_trip: RoundTrip
) -> Iterator[None]:
    """Adds a long document to a store in pieces, and yields after each batch of them."""
    pieces = iter_pieces(document.pieces(), tokenizer.find_cut)
    while batch := list(islice(pieces, PIECES_PER_BATCH)):
        encoded = tokenizer.encode(batch)
        round_trip.add(batch, encoded)
        for piece, ids in zip(batch, encoded, strict=True):
            writer.extend(ids, len(piece.encode()))
        yield
    writer.end_document()


def _format_token_count(writers: dict[str, TokenStoreWriter]) -> str:
    return f"{sum(w.n_tokens for w in writers.values()):,} tokens"


def _add_block(
    writers: dict[str, TokenStoreWriter],
    tokenizer: Tokenizer,
    block: list[tuple[str, Document]],
    round_trips: dict[str, RoundTrip],
) -> None:
    """Encodes a block of documents and adds each to the store of its split."""
    part_ids = encode_parts(tokenizer, [weighted_parts(document) for _, document in block])
    encoded = [
        (split, doc, without_frame(tokenizer, ids) if isinstance(doc, WeightedDocument) else ids)
        for (split, doc), ids in zip(block, part_ids, strict=True)
    ]
    for split, writer in writers.items():
        documents = [(document, parts) for name, document, parts in encoded if name == split]
        sizes = [_text_bytes(document) for document, _ in documents]
        texts = [part.text for document, _ in documents for part in weighted_parts(document)]
        round_trips[split].add(texts, [ids for _, parts in documents for ids in parts])
        if writer.has_records:
            records = [_record_texts(tokenizer, *item) for item in documents]
            writer.add_records(list(zip(records, sizes, strict=True)))
        elif writer.has_weights:
            weights = [_token_weights(document, parts) for document, parts in documents]
            writer.add_weighted([np.concatenate(parts) for _, parts in documents], sizes, weights)
        elif writer.image_shape:
            images = [doc.image for doc, _ in documents if isinstance(doc, ImageText)]
            writer.add_images([parts[0] for _, parts in documents], sizes, images)
        else:
            groups = [d.group for d, _ in documents if isinstance(d, WeightedDocument)]
            writer.add([parts[0] for _, parts in documents], sizes, groups)


def _record_texts(
    tokenizer: Tokenizer, document: Document, part_ids: list[np.ndarray]
) -> list[np.ndarray]:
    """Returns the ids of each text of a record, without a frame that a template writes."""
    if not isinstance(document, PreferenceRecord):
        return part_ids
    ids = iter(part_ids)
    texts = [np.concatenate([next(ids) for _ in text.parts]) for text in document.texts]
    (prompt, chosen), (_, rejected) = (without_frame(tokenizer, [texts[0], x]) for x in texts[1:])
    return [prompt, chosen, rejected]


def weighted_parts(document: Document) -> tuple[WeightedPart, ...]:
    """Returns the separately encoded parts of a document with their weights."""
    if isinstance(document, WeightedDocument):
        return in_order(document.parts)
    if isinstance(document, PreferenceRecord):
        return document.parts
    return tuple(WeightedPart(text) for text in document_texts(document))


def _token_weights(document: Document, part_ids: list[np.ndarray]) -> np.ndarray:
    """Returns the weight of each token of a document."""
    weights = [part.weight for part in weighted_parts(document)]
    return np.repeat(np.array(weights, np.float32), [len(ids) for ids in part_ids])


def _text_bytes(document: Document) -> int:
    """Returns the size of the text whose weight is not 0."""
    return sum(len(part.text.encode()) for part in weighted_parts(document) if part.weight)
