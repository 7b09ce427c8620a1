"""Baselines that no model is needed for: n-grams and compressors, in bits per byte of a split.

A model that is not below the bigram table of the very text that it saw has learned less than which
token follows which. The scores of a split are

    SPLIT/baseline/seen/byte_K, .../train/byte_K     byte n-grams of order K, 0 to 4, interpolated
    SPLIT/baseline/seen/token_N, .../train/token_N   uni-, bi- and trigram of the tokenizer
    SPLIT/baseline/split/gzip, bzip2, xz             compressors on the split alone

`seen` is the text of the rows that the run trained on, `train` the training split; at most
`MAX_BYTES` of each are read. The evaluated split is the part of it that `eval.limit` selects. The
weight of a score is the text that it was fitted to, in bytes. Byte n-grams and compressors are left
out if the tokenizer does not restore the text.
"""

import bz2
import contextlib
import gzip
import hashlib
import lzma
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from data.packing import PackedRows
from data.store import TokenStore
from errors import CheckpointError
from eval.baselines.ngrams import Passage, bits_by_order
from eval.baselines.seen_text import (
    Stretch,
    byte_passages,
    seen_stretches,
    split_stretches,
    target_stretches,
    token_passages,
)
from eval.split_part import count_bytes, select_part
from eval.task import EvalContext, Score
from settings.run_json import is_intact
from training.run.atomic_io import read_json, write_json
from training.run.seal import with_hash

MAX_BYTES = 256_000_000  # Text that a model is fitted to or evaluated on at most.
MAX_BYTE_ORDER, MAX_TOKEN_ORDER = 4, 2
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda text: gzip.compress(text, 9, mtime=0),
    "bzip2": lambda text: bz2.compress(text, 9),
    "xz": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
}
CACHE_FOLDER = "baselines"  # Below the folder of the token stores, which names its content.


class Baselines:
    """Measures n-gram models and compressors on splits; it reads no model."""

    version: ClassVar[int] = 2  # 1 read at most 64 MiB.

    def __init__(self, splits: tuple[str, ...] = ("test",)):
        self.splits = splits

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every split; none where tokens have loss weights."""
        train = ctx.data.train
        spec = ctx.objective.row_spec(ctx.settings.model, ctx.settings.train.seq_len)
        stretches = {"train": split_stretches(train, MAX_BYTES)}
        cfg = ctx.settings.train
        n_rows = cfg.steps * cfg.batch_size
        if cfg.unique_tokens:
            n_rows = min(n_rows, cfg.unique_tokens // spec.text_length)
        if spec.row_kind == "packed" and n_rows:
            rows = PackedRows(train, spec.text_length, spec.overlap, ctx.settings.seed)
            stretches = {"seen": seen_stretches(rows, n_rows, MAX_BYTES)} | stretches
        for split in self.splits:
            store: TokenStore = getattr(ctx.data, split)
            # Rows of images are no windows of packed text.
            is_part = spec.n_images and select_part(ctx, store).label
            if is_part or store.weights(0, 0, 1) is not None:
                continue
            for label, selected in stretches.items():
                yield from _cached(ctx, split, label, selected)
            yield from _cached(ctx, split, "split", [])


def _cached(
    ctx: EvalContext, split: str, label: str, stretches: Sequence[Stretch]
) -> Iterator[Score]:
    """Yields the scores of one text from the file beside the token stores, or computes it."""
    digest = hashlib.sha256(np.array(stretches, "<i8").tobytes())
    part = select_part(ctx, getattr(ctx.data, split)).label
    read = " ".join(filter(None, (split, label, part)))
    digest.update(f"{Baselines.version} {ctx.data.fingerprint} {read}".encode())
    path = ctx.data.folder / CACHE_FOLDER / f"{digest.hexdigest()[:32]}.json"
    record = None
    with contextlib.suppress(CheckpointError):  # A damaged file is computed again.
        record = read_json(path)
    if record is None or not is_intact(record, is_sealed=True):
        values = _compressors(ctx, split) if label == "split" else _ngrams(ctx, split, stretches)
        record = with_hash({"scores": values})
        try:
            path.parent.mkdir(exist_ok=True)
            write_json(path, record)
        except OSError:  # Without a cache that can be written, the scores are computed again.
            pass
    for name, (value, weight) in record["scores"].items():
        yield Score(f"{split}/baseline/{label}/{name}", value, weight)


def _ngrams(
    ctx: EvalContext, split: str, stretches: Sequence[Stretch]
) -> dict[str, tuple[float, float]]:
    tokenizer = ctx.data.tokenizer
    fitted = token_passages(ctx.data.train, stretches)
    tokens, text, n_bytes = _read_split(ctx, split)
    fitted_bytes = byte_passages(tokenizer, fitted)
    weight = float(sum(len(p.symbols) for p in fitted_bytes))
    values = {}
    for prefix, a, b, n_symbols, order in (
        ("byte", fitted_bytes, text, 256, MAX_BYTE_ORDER),
        ("token", fitted, tokens, tokenizer.vocab_size, MAX_TOKEN_ORDER),
    ):
        if not b:
            continue
        for k, bits in enumerate(bits_by_order(a, b, n_symbols, order)):
            # Order k of tokens is called by the length of its n-grams: 1 for unigrams.
            values[f"{prefix}_{k + (prefix == 'token')}"] = (bits / n_bytes, weight)
    return values


def _compressors(ctx: EvalContext, split: str) -> dict[str, tuple[float, float]]:
    _, passages, n_bytes = _read_split(ctx, split)
    text = b"\n".join(p.symbols.astype(np.uint8).tobytes() for p in passages)
    return {
        name: (8 * len(compress(text)) / n_bytes, float(n_bytes))
        for name, compress in COMPRESSORS.items()
        if text
    }


def _read_split(ctx: EvalContext, split: str) -> tuple[list[Passage], list[Passage], int]:
    """Returns the part of a split that is evaluated, as tokens and as bytes, and its size in bytes.

    There are no bytes if the tokenizer does not restore the text. A character that a window cuts
    is replaced in the bytes.
    """
    store: TokenStore = getattr(ctx.data, split)
    part, tokenizer = select_part(ctx, store), ctx.data.tokenizer
    if part.label:
        stride = math.ceil(count_bytes(ctx, store, part) / MAX_BYTES)
        part = part._replace(windows=part.windows[::stride])
        spec = ctx.objective.row_spec(ctx.settings.model, ctx.settings.train.seq_len)
        rows = PackedRows(store, spec.text_length, spec.overlap)
        tokens = token_passages(store, target_stretches(rows, part.windows))
        is_restored = store.sum_over_tokens(tokenizer.byte_lengths()) == store.text_bytes
        text = byte_passages(tokenizer, tokens) if is_restored else []
        return tokens, text, round(count_bytes(ctx, store, part))
    tokens = token_passages(store, split_stretches(store, MAX_BYTES))
    text = byte_passages(tokenizer, tokens)
    n_decoded = sum(len(p.symbols) for p in text)
    is_whole = len(tokens) == store.n_documents
    if is_whole and n_decoded != store.text_bytes:
        return tokens, [], store.text_bytes
    return tokens, text, n_decoded
