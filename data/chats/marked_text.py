"""Encoding of texts whose markers are special tokens of the tokenizer, such as the turns of chats.

A marker of a template becomes the id of its special token. What a message says stays text, even
where it spells a marker.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from data.loss_weights import WeightedPart
from data.tokenizers import Tokenizer


def encode_parts(
    tokenizer: Tokenizer, documents: Sequence[Sequence[WeightedPart]]
) -> list[list[np.ndarray]]:
    """Returns the ids of the parts of every document, each part encoded separately."""
    pieces = [list(_pieces(tokenizer, part)) for parts in documents for part in parts]
    texts: dict[bool, list[str]] = {True: [], False: []}
    for text, is_marked in (piece for part in pieces for piece in part):
        texts[is_marked].append(text)
    encoders = {True: tokenizer.encode_marked, False: tokenizer.encode}
    ids = {kind: iter(encoders[kind](texts[kind]) if texts[kind] else ()) for kind in texts}
    empty = np.zeros(0, np.int32)
    encoded = iter(
        np.concatenate([empty, *(next(ids[is_marked]) for _, is_marked in part)]) for part in pieces
    )
    return [[next(encoded) for _ in parts] for parts in documents]


def without_frame(tokenizer: Tokenizer, ids: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the parts of a document without the frame that packing adds around it.

    Some templates write the frame too: bos before a chat, or eos after a reply.
    """
    prefix, suffix = tokenizer.framing.document_prefix, tokenizer.framing.document_suffix
    first, last = ids[0].tolist(), ids[-1].tolist()
    if prefix and tuple(first[: len(prefix)]) == prefix:
        ids = [ids[0][len(prefix) :], *ids[1:]]
    if suffix and tuple(last[-len(suffix) :]) == suffix:
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
