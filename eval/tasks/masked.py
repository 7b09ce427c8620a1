"""Evaluates masked language modelling: 15 % of the text is masked, always the same tokens.

The masked tokens are recorded in a file beside each split of the token store, `mask-LENGTH.bin`,
for rows of LENGTH tokens. The mask is sampled once, independent of the mask rate of training. Its
hash is recorded in `mask-LENGTH.json` and verified at every read (docs/formats.md). Every result
contains the hash, and the board ranks results of different masks separately. All models see the
windows of `eval/tasks/bits_per_byte.py`.
"""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from data.packing import PackedRows
from data.store import TokenStore
from errors import DataError
from eval.split_part import select_part
from eval.task import EvalContext, Score
from eval.tasks.bits_per_byte import SPLITS, evaluate_store, mean_terms, read_batches
from objectives.masked_lm import EVAL_MASK_RATE

FORMAT = 1
LOG = logging.getLogger(__name__)


class MaskedTokenLoss:
    """Measures cross-entropy and accuracy on the tokens of the fixed mask."""

    version: ClassVar[int] = 3

    def __init__(self, splits: tuple[str, ...] = SPLITS):
        self.splits = splits

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every split."""
        for split in self.splits:
            store = getattr(ctx.data, split)
            mask = load_or_make_mask(ctx, store)
            totals, digest = evaluate_store(ctx, store, _masked_batches(ctx, store, mask.is_masked))
            yield from mean_terms(totals, split, "masked", ("masked_nats", "accuracy"))
            yield Score(f"{split}/eval_set_sha256", digest)
            yield Score(f"{split}/mask_sha256", mask.sha256)


class EvalMask(NamedTuple):
    """Holds the masked tokens of N windows of T tokens, and the hash of their file."""

    is_masked: Bool[np.ndarray, "N T"]
    sha256: str


class MaskIndex(NamedTuple):
    """Describes a mask file; it is the content of the JSON file beside it."""

    format: int
    store: str  # Fingerprint of the split.
    windows: int
    length: int  # Tokens of a window.
    rate: float  # Share of a window's text that is masked.
    hidden: int  # Number of masked tokens in all windows.
    sha256: str  # Hash of the bits.


def load_or_make_mask(ctx: EvalContext, store: TokenStore) -> EvalMask:
    """Returns the mask of a split for rows of train.seq_len tokens, and writes its file if missing.

    A damaged file, or one for other text, raises a DataError.
    """
    length = ctx.settings.train.seq_len
    path = store.folder / f"mask-{length}.bin"
    if not path.with_suffix(".json").exists():
        is_masked = _sample_mask(ctx, store)
        try:
            _write_mask(path, store, is_masked)
        except OSError as error:
            LOG.warning(
                "%s cannot be written (%s); every evaluation samples the mask again",
                path,
                error.strerror,
            )
            return EvalMask(is_masked, hashlib.sha256(_pack_bits(is_masked)).hexdigest())
    return _read_mask(path, store, length)


def _sample_mask(ctx: EvalContext, store: TokenStore) -> Bool[np.ndarray, "N T"]:
    """Samples the mask of all windows of the split as the objective samples it."""
    windows = np.arange(_count_windows(store, ctx.settings.train.seq_len))
    return np.concatenate(
        [batch["is_masked"][_real_rows(batch)] for batch in _window_batches(ctx, store, windows)]
    )


def _count_windows(store: TokenStore, length: int) -> int:
    return -(-PackedRows(store, length, 0).epoch_length // length)


def _write_mask(path: Path, store: TokenStore, is_masked: Bool[np.ndarray, "N T"]) -> None:
    """Writes both files atomically, the index last, so that concurrent writers cannot mix files."""
    bits, (windows, length) = _pack_bits(is_masked), is_masked.shape
    digest = hashlib.sha256(bits).hexdigest()
    index = MaskIndex(
        *(FORMAT, store.fingerprint, windows, length, EVAL_MASK_RATE, int(is_masked.sum()), digest)
    )
    text = json.dumps(index._asdict(), indent=1) + "\n"
    for target, content in ((path, bits), (path.with_suffix(".json"), text.encode())):
        partial = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
        partial.write_bytes(content)
        partial.rename(target)


def _read_mask(path: Path, store: TokenStore, length: int) -> EvalMask:
    index_path = path.with_suffix(".json")
    remedy = f"delete {path.with_suffix('.*')}, the next evaluation samples the mask again"
    try:
        index, bits = MaskIndex(**json.loads(index_path.read_text())), path.read_bytes()
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{index_path} cannot be read ({error}); {remedy}") from error
    windows = _count_windows(store, length)
    expected = FORMAT, store.fingerprint, windows, length, EVAL_MASK_RATE
    if index[:5] != expected:
        raise DataError(f"{index_path} is {index[:5]}, must be {expected}; {remedy}")
    row_bytes = -(-length // 8)
    if len(bits) != windows * row_bytes or hashlib.sha256(bits).hexdigest() != index.sha256:
        raise DataError(f"{path} is damaged: sha256 is not that of {index_path.name}; {remedy}")
    packed = np.frombuffer(bits, np.uint8).reshape(windows, row_bytes)
    return EvalMask(np.unpackbits(packed, axis=1, count=length).astype(bool), index.sha256)


def _pack_bits(is_masked: Bool[np.ndarray, "N T"]) -> bytes:
    return np.packbits(is_masked, axis=1).tobytes()


def _masked_batches(
    ctx: EvalContext, store: TokenStore, is_masked: Bool[np.ndarray, "N T"]
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the selected windows with these tokens masked; only masked tokens have a weight."""
    start, mask_id = 0, ctx.data.tokenizer.specials.mask
    windows = select_part(ctx, store).windows
    for batch in _window_batches(ctx, store, windows):
        n_rows = int(_real_rows(batch).sum())
        batch_mask = np.zeros_like(batch.pop("is_masked"))
        batch_mask[:n_rows] = is_masked[windows[start : start + n_rows]]
        start += n_rows
        tokens = np.where(batch_mask, mask_id, batch["targets"])
        batch["tokens"] = tokens.astype(batch["tokens"].dtype)
        yield batch | {"weights": batch["weights"] * batch_mask}


def _window_batches(
    ctx: EvalContext, store: TokenStore, windows: Int[np.ndarray, " N"]
) -> Iterator[dict[str, np.ndarray]]:
    """Yields windows with weight 1 on every token of text, and the objective's own mask.

    The array is_masked holds the tokens that the objective would mask.
    """
    settings, objective = ctx.settings, ctx.objective.for_eval()
    make_row = objective.make_row_fn(settings.model, settings.train.seq_len, ctx.data.tokenizer)

    def make_window(
        pieces: list[np.ndarray], length: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        row = make_row(pieces, length, rng)
        is_masked = row["tokens"] != row["targets"]
        weights = (row["segment_ids"] != 0).astype(np.float32)
        return row | {"is_masked": is_masked, "weights": weights}

    return read_batches(ctx, store, make_window, windows=windows)


def _real_rows(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Returns which rows are not padding; the rows of padding come last."""
    return np.asarray(batch["segment_ids"].any(axis=1))
