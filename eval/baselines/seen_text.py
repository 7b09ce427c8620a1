"""Passages of the text that a run saw in training, and of whole splits, for n-gram baselines."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from data.packing import DocumentSlice, PackedRows
from data.store import TokenStore
from data.tokenizers import Tokenizer
from eval.baselines.ngrams import Passage

DECODED_TOKENS = 4 << 20  # Tokens that are decoded at a time.
MAX_CHARACTER_TOKENS = 4  # Tokens of one character of UTF-8 at most.
Stretch = tuple[int, int, int]  # Document, and the first and the end position in framed tokens.


def split_stretches(store: TokenStore, max_bytes: int) -> list[Stretch]:
    """Returns the documents of a store, evenly spaced if all have over `max_bytes` of text."""
    n_selected = store.n_documents
    if store.text_bytes > max_bytes:
        n_selected = max(1, n_selected * max_bytes // store.text_bytes)
    documents = np.linspace(0, store.n_documents - 1, n_selected).astype(int)
    return [(int(d), 0, int(store.lengths[d]) + 2) for d in documents]


def seen_stretches(rows: PackedRows, n_rows: int, max_bytes: int) -> list[Stretch]:
    """Returns the stretches of documents in the first rows of training, each once, merged.

    Rows after `max_bytes` of text, or after one epoch, add nothing.
    """
    tokens_per_byte = rows.store.n_tokens / max(rows.store.text_bytes, 1)
    most_tokens = min(max_bytes * tokens_per_byte, rows.epoch_length + rows.row_length)
    n_rows = min(n_rows, int(most_tokens / rows.row_length) + 1)
    slices = (item for index in range(n_rows) for item in rows.row(index))
    return merge_stretches(_stretch(rows, s, 0) for s in slices)


def target_stretches(rows: PackedRows, windows: Iterable[int]) -> list[Stretch]:
    """Returns the stretches of documents that rows of a split predict, merged."""
    slices = (item for window in windows for item in rows.row(int(window)))
    # A row that reads framed[s : e] predicts framed[s + overlap : e].
    return merge_stretches(_stretch(rows, s, rows.overlap) for s in slices)


def _stretch(rows: PackedRows, item: DocumentSlice, skipped: int) -> Stretch:
    """Returns the place of a slice; position 1 is the first token, with or without a bos."""
    start = item.start + 1 - rows.n_before
    return item.document, start + skipped, start + len(item.tokens)


def merge_stretches(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Returns the union of stretches, in the order of documents."""
    merged: list[Stretch] = []
    for document, start, stop in sorted(stretches):
        if merged and merged[-1][0] == document and start <= merged[-1][2]:
            merged[-1] = (document, merged[-1][1], max(stop, merged[-1][2]))
        else:
            merged.append((document, start, stop))
    return merged


def token_passages(store: TokenStore, stretches: Iterable[Stretch]) -> list[Passage]:
    """Returns the tokens of stretches; framed position 0 is bos, the last one eos."""
    lengths = store.lengths
    dtype = np.uint16 if store.vocab_size <= 1 << 16 else np.int32
    passages = []
    for document, start, stop in stretches:
        n = int(lengths[document])
        ids = store.slice(document, max(start, 1) - 1, min(stop - 1, n))
        passages.append(Passage(ids.astype(dtype), start <= 1, stop > n + 1))
    return passages


def byte_passages(tokenizer: Tokenizer, passages: Sequence[Passage]) -> list[Passage]:
    """Returns the text of passages of tokens as bytes of UTF-8."""
    return [p._replace(symbols=_decode_bytes(tokenizer, p.symbols)) for p in passages]


def _decode_bytes(tokenizer: Tokenizer, ids: Integer[np.ndarray, " N"]) -> UInt8[np.ndarray, " B"]:
    """Returns the text of ids as bytes; many ids are decoded in pieces, which bounds the memory."""
    text, start = bytearray(), 0
    while start < len(ids):
        stop = _nearest_border(tokenizer, ids, start + DECODED_TOKENS)
        text += tokenizer.decode(ids[start:stop].tolist()).encode()
        start = stop
    return np.frombuffer(text, np.uint8)


def _nearest_border(tokenizer: Tokenizer, ids: Integer[np.ndarray, " N"], end: int) -> int:
    """Returns the last place up to `end` at which no character is divided."""
    for stop in range(end, end - MAX_CHARACTER_TOKENS, -1):
        left = ids[stop - MAX_CHARACTER_TOKENS : stop].tolist()
        right = ids[stop : stop + MAX_CHARACTER_TOKENS].tolist()
        if tokenizer.decode(left) + tokenizer.decode(right) == tokenizer.decode(left + right):
            return stop
    return end
