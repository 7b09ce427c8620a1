"""Rows of labelled examples: one text, two texts with ids between them, or a text of words.

A text is framed as the model reads texts elsewhere (`eval/framing.py`). Between two texts stand the
ids that end a text (BERT's [SEP]), else the end of a document, else a line break. RoBERTa's second
separator is left out. Where two texts do not fit, the longer one loses its end, as in BERT.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from data.tokenizers import Tokenizer
from eval.finetuning.labelled_files import LabelledExample
from eval.framing import Reading

MIN_LENGTH, LENGTH_MULTIPLE = 16, 16  # Tokens of padded rows.


class ExampleRow(NamedTuple):
    """The tokens of an example."""

    tokens: Int[np.ndarray, " T"]
    types: Int[np.ndarray, " T"]  # 1 for the second text, else 0.
    # For each word, the position of the token that has its label; -1: it has none, or is cut off.
    word_positions: Int[np.ndarray, " W"]
    is_cut: bool


def encode_examples(
    tokenizer: Tokenizer,
    reads: Reading,
    examples: Sequence[LabelledExample],
    max_tokens: int,
    *,
    has_words: bool,
    labels_last_token: bool,
) -> list[ExampleRow]:
    """Returns the rows of examples.

    Args:
        tokenizer: the tokenizer of the model.
        reads: how the model reads texts.
        examples: the examples.
        max_tokens: maximum number of tokens of a row.
        has_words: whether the texts of an example are the words of one text.
        labels_last_token: whether the last token of a word has its label, not the first.
    """
    counts = [len(example.texts) for example in examples]
    # A word that follows another is encoded with the space before it.
    texts = [
        f" {text}" if has_words and i else text
        for example in examples
        for i, text in enumerate(example.texts)
    ]
    ends = np.cumsum(counts)
    encoded = tokenizer.encode(texts)
    frame = _Frame.of(tokenizer, reads)
    rows = []
    for end, count in zip(ends, counts, strict=True):
        ids = encoded[end - count : end]
        if has_words:
            rows.append(_word_row(ids, frame, max_tokens, labels_last_token))
        else:
            rows.append(_text_row(ids, frame, max_tokens))
    return rows


def padded_length(length: int, longest: int) -> int:
    """Returns the length to which a batch is padded whose longest row has `length` tokens.

    It is a power of two, or the length of the longest row of the data set rounded up.
    """
    limit = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return min(max(MIN_LENGTH, 1 << (length - 1).bit_length()), limit)


class _Frame(NamedTuple):
    """The ids around a text and between two texts."""

    before: np.ndarray
    between: np.ndarray
    after: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer, reads: Reading) -> "_Frame":
        """Returns the frame of a model's texts."""
        between = reads.suffix or tokenizer.framing.document_suffix
        line_break = tokenizer.encode(["\n"])[0]
        return cls(
            np.array(reads.prefix, np.int32),
            np.array(between, np.int32) if between else line_break,
            np.array(reads.suffix, np.int32),
        )


def _text_row(texts: list[np.ndarray], frame: _Frame, max_tokens: int) -> ExampleRow:
    """Returns the row of one or two texts, whose ends are cut where they do not fit."""
    between = frame.between if len(texts) > 1 else frame.between[:0]
    room = max(max_tokens - len(frame.before) - len(between) - len(frame.after), len(texts))
    lengths = [len(ids) for ids in texts]
    while sum(lengths) > room:
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        others = sum(lengths) - lengths[longest]
        second = max((n for i, n in enumerate(lengths) if i != longest), default=0)
        lengths[longest] = max(room - others, min(second, lengths[longest] - 1))
    first, *second_text = (ids[:n] for ids, n in zip(texts, lengths, strict=True))
    head = np.concatenate([frame.before, first, between if second_text else frame.after])
    tail = np.concatenate([*second_text, frame.after]) if second_text else frame.after[:0]
    types = np.repeat(np.arange(2, dtype=np.int32), [len(head), len(tail)])
    is_cut = any(len(ids) > n for ids, n in zip(texts, lengths, strict=True))
    return ExampleRow(np.concatenate([head, tail]), types, np.zeros(0, np.int32), is_cut)


def _word_row(
    words: list[np.ndarray], frame: _Frame, max_tokens: int, labels_last_token: bool
) -> ExampleRow:
    lengths = np.array([len(ids) for ids in words])
    ends = len(frame.before) + np.cumsum(lengths)
    positions = ends - 1 if labels_last_token else ends - lengths
    limit = max(max_tokens - len(frame.after), 1)
    positions = np.where((lengths > 0) & (positions < limit), positions, -1).astype(np.int32)
    body = np.concatenate([frame.before, *words])
    tokens = np.concatenate([body[:limit], frame.after]).astype(np.int32)
    return ExampleRow(tokens, np.zeros_like(tokens), positions, len(body) > limit)
