"""Encoding of texts whose markers are special tokens of the tokenizer, such as the turns of chats.

A marker of a template becomes the id of its special token. What a message says stays text, even
where it spells a marker.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.loss_weights import WeightedPart
from data.readers.long_text import LONG_TEXT_BYTES
from data.tokenizers import Tokenizer, iter_pieces


class _Piece(NamedTuple):
    """A piece of a part, and how it is encoded."""

    text: str
    is_marked: bool  # Whether special tokens in it are markers.
    tokenizer: Tokenizer


def encode_parts(
    tokenizer: Tokenizer, documents: Sequence[Sequence[WeightedPart]]
) -> list[list[np.ndarray]]:
    """Returns the ids of the parts of every document, each part encoded separately.

    A tokenizer that puts a space before a text puts none before a part that goes on.
    """
    pieces = [_pieces(tokenizer, part) for parts in documents for part in parts]
    groups: dict[tuple[bool, bool], list[_Piece]] = {}
    for piece in itertools.chain(*pieces):
        groups.setdefault(_group(piece, tokenizer), []).append(piece)
    ids = {group: _encode(listed) for group, listed in groups.items()}
    empty = np.zeros(0, np.int32)
    encoded = iter(
        np.concatenate([empty, *(next(ids[_group(piece, tokenizer)]) for piece in part)])
        for part in pieces
    )
    return [[next(encoded) for _ in parts] for parts in documents]


def _group(piece: _Piece, tokenizer: Tokenizer) -> tuple[bool, bool]:
    return piece.is_marked, piece.tokenizer is tokenizer


def _encode(pieces: list[_Piece]) -> Iterator[np.ndarray]:
    """Returns the ids of pieces that are encoded alike."""
    tokenizer, texts = pieces[0].tokenizer, [piece.text for piece in pieces]
    if pieces[0].is_marked:
        return iter(tokenizer.encode_marked(texts))
    return _encode_plain(tokenizer, texts)


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


def _pieces(tokenizer: Tokenizer, part: WeightedPart) -> list[_Piece]:
    """Returns the pieces of a part, each of which begins a text or goes on."""
    if part.plain is None and not part.before:
        return [_Piece(part.text, False, tokenizer)]
    specials = tuple(sorted(tokenizer.special_texts, key=len, reverse=True))
    pattern = re.compile("|".join(map(re.escape, specials)) or "(?!)")
    pieces, goes_on = list[_Piece](), bool(part.before)
    is_behind_special = part.before.endswith(specials)
    for text, is_marked in _cut(part, pattern):
        if not text:
            continue
        reads, begin = tokenizer.going_on(is_behind_special) if goes_on else tokenizer, len(text)
        if reads is not tokenizer and is_marked:  # A special token and what is behind it begin.
            begin = next((match.start() for match in pattern.finditer(text)), begin)
        pieces.append(_Piece(text[:begin], is_marked, reads))
        pieces += [_Piece(text[begin:], is_marked, tokenizer)] if begin < len(text) else []
        goes_on, is_behind_special = True, is_marked and text.endswith(specials)
    return pieces


def _cut(part: WeightedPart, pattern: re.Pattern[str]) -> Iterator[tuple[str, bool]]:
    """Yields the text of a part in pieces, with whether special tokens in them are markers."""
    if part.plain is None:
        yield part.text, False
        return
    start = 0
    for low, high in part.plain:
        for match in pattern.finditer(part.text, low, high):
            yield part.text[start : match.start()], True
            yield match.group(), False
            start = match.end()
    yield part.text[start:], True
