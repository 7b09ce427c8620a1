"""Encoding of texts whose markers are special tokens of the tokenizer, such as the turns of chats.

A marker of a template becomes the id of its special token. What a message says stays text, even
where it spells a marker.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from data.loss_weights import WeightedPart
from data.readers.long_text import LONG_TEXT_BYTES
from data.tokenizers import Tokenizer, iter_pieces


def encode_parts(
    tokenizer: Tokenizer, documents: Sequence[Sequence[WeightedPart]]
) -> list[list[np.ndarray]]:
    """Returns the ids of the parts of every document, each part encoded separately."""
    pieces = [list(_pieces(tokenizer, part)) for parts in documents for part in parts]
    texts: dict[bool, list[str]] = {True: [], False: []}
    for text, is_marked in (piece for part in pieces for piece in part):
        texts[is_marked].append(text)
    marked = tokenizer.encode_marked(texts[True]) if texts[True] else []
    ids = {True: iter(marked), False: _encode_plain(tokenizer, texts[False])}
    empty = np.zeros(0, np.int32)
    encoded = iter(
        np.concatenate([empty, *(next(ids[is_marked]) for _, is_marked in part)]) for part in pieces
    )
    return [[next(encoded) for _ in parts] for parts in documents]


def _encode_plain(tokenizer: Tokenizer, texts: list[str]) -> Iterator[np.ndarray]:
    """Yields the ids of every text; a long one is encoded in pieces, which bounds the memory."""
    is_long = [len(text) > LONG_TEXT_BYTES for text in texts]
    short_texts = [text for text, long in zip(texts, is_long, strict=True) if not long]
    short = iter(tokenizer.encode(short_texts) if short_texts else ())
    for text, long in zip(texts, is_long, strict=True):
        if long:
            pieces = iter_pieces([text], tokenizer.find_cut)
            yield np.concatenate([tokenizer.encode([piece])[0] for piece in pieces])
        else:
            yield next(short)


def without_frame(tokenizer: Tokenizer, ids: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the parts of a document without the frame that packing adds around it.

    Some templates write the frame too: bos before a chat, or eos after a reply.
    """
    prefix, suffix = tokenizer.framing.document_prefix, tokenizer.framing.document_suffix
    if prefix and tuple(ids[0][: len(prefix)].tolist()) == prefix:
        ids = [ids[0][len(prefix) :], *ids[1:]]
    if suffix and tuple(ids[-1][-len(suffix) :].tolist()) == suffix:
        ids = [*ids[:-1], ids[-1][: -len(suffix)]]
    return ids


def _pieces(tokenizer: Tokenizer, part: WeightedPart) -> Iterator[tuple[str, bool]]:
    """Yields the text of a part in pieces, with whether special tokens in them are markers."""
    if part.plain is None:
        yield part.text, False
        return
    specials = sorted(tokenizer.special_texts, key=len, reverse=True)
    if not specials:
        yield part.text, True
        return
    pattern, start = re.compile("|".join(map(re.escape, specials))), 0
    for low, high in part.plain:
        for match in pattern.finditer(part.text, low, high):
            yield part.text[start : match.start()], True
            yield match.group(), False
            start = match.end()
    yield part.text[start:], True
