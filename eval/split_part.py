"""Selects the part of a split that an evaluation reads: `eval.limit`, in whole windows.

A window is a row of the split as `eval/tasks/bits_per_byte.py` cuts it. A part consists of blocks
of eight adjacent windows, which are the longest rows that a task reads. They are the first ones of
a fixed permutation, so that they lie all over the split, depend on neither seed nor model, and a
smaller part is contained in a larger one. `SplitPart.label` names the part, with a hash of its
windows. It is recorded beside the scores, and scores of different parts are never compared. A whole
split has no label.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from data.open_stores import Data
from data.random_streams import RandomStream, permutation
from data.store import TokenStore
from data.text_rows import make_row_source
from eval.task import EvalContext
from objectives import RowSpec
from training.settings import AUTOMATIC_LIMIT, Settings

SCORE_NAME = "part"  # The score SPLIT/part is the label.
BLOCK = 8  # Windows of a block.
# The share of the tokens of training that an automatic limit gives to a split. A forward pass is a
# third of a training step, so that two splits cost at most a ninth of the FLOPs of training. They
# need no update and have larger batches, which makes this less than a tenth of the time.
TRAINING_SHARE = 1 / 6
FORWARD_SHARE = 1 / 3  # FLOPs of the forward pass over those of training.
MIN_WINDOWS = 128  # Windows of an automatic part at least.
HASH_LENGTH = 16  # Characters of the hash in a label.


class SplitPart(NamedTuple):
    """The windows of a split that are evaluated."""

    windows: Int[np.ndarray, " N"]  # Their numbers in the whole split, ascending.
    label: str  # As "512 of 2,549 windows of 128, sha256 4f..."; blank for a whole split.

    def extended_to_blocks(self) -> "SplitPart":
        """Returns the part with all windows of its blocks, of which a small limit cuts the last."""
        if not self.label:
            return self
        blocks = np.unique(self.windows // BLOCK)
        return self._replace(windows=(blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel())


def select_part(ctx: EvalContext, store: TokenStore) -> SplitPart:
    """Returns the part of a split that `eval.limit` selects."""
    spec = ctx.objective.for_eval().row_spec(ctx.settings.model, ctx.settings.train.seq_len)
    n_windows = windows_of_split(store, spec)
    n_selected = count_windows(ctx.settings, spec.text_length, n_windows)
    if n_selected >= n_windows:
        return SplitPart(np.arange(n_windows), "")
    order = permutation(0, 0, RandomStream.EVAL_BLOCKS, -(-n_windows // BLOCK))
    windows = (order[:, None] * BLOCK + np.arange(BLOCK)).ravel()
    windows = np.sort(windows[windows < n_windows][:n_selected])
    digest = hashlib.sha256(f"{store.fingerprint} {spec.text_length} {spec.overlap} ".encode())
    digest.update(windows.astype("<i8").tobytes())
    label = (
        f"{n_selected:,} of {n_windows:,} windows of {spec.text_length}, "
        f"sha256 {digest.hexdigest()[:HASH_LENGTH]}"
    )
    return SplitPart(windows, label)


def count_windows(settings: Settings, window_length: int, n_windows: int) -> int:
    """Returns how many of the windows of a split `eval.limit` permits.

    An automatic limit depends on the tokens of training. Where it does not permit the whole split,
    it is a power of two, so that runs of nearly equal length are scored on the same windows.
    """
    limit, train = settings.eval.limit, settings.train
    if limit != AUTOMATIC_LIMIT:
        return limit // window_length if limit else n_windows
    n_tokens = train.steps * train.batch_size * train.seq_len
    if not n_tokens:  # The parameters were not trained here.
        return n_windows
    n_permitted = int(n_tokens * TRAINING_SHARE) // window_length
    if n_permitted >= n_windows:
        return n_windows
    return min(max(1 << max(n_permitted.bit_length() - 1, 0), MIN_WINDOWS), n_windows)


def eval_share(settings: Settings, data: Data) -> float:
    """Returns the FLOPs of one forward pass over the parts in `eval.splits` over those of training.

    For text pairs, of which a fixed number is read, and without training it is 0. Of a mixture the
    first part counts.
    """
    train, objective = settings.train, settings.mixture_parts()[0].objective
    spec = objective.for_eval().row_spec(settings.model, train.seq_len)
    n_trained = train.steps * train.batch_size * train.seq_len
    is_limited = spec.row_kind == "packed" or (spec.n_images and spec.needs_logits)
    if not is_limited or not n_trained:
        return 0.0
    totals = [windows_of_split(getattr(data, split), spec) for split in settings.eval.splits]
    n_windows = sum(min(count_windows(settings, spec.text_length, n), n) for n in totals)
    return FORWARD_SHARE * n_windows * spec.text_length / n_trained


def common_limit(settings: Sequence[Settings]) -> int:
    """Returns the value of `eval.limit` with which runs of all lengths are scored on one part."""
    limits = {s.eval.limit for s in settings}
    lengths = sorted(s.train.steps * s.train.batch_size * s.train.seq_len for s in settings)
    if limits != {AUTOMATIC_LIMIT} or lengths[0] == lengths[-1]:
        return settings[0].eval.limit
    longest_window = max(s.row_spec.text_length for s in settings)
    return max(int(lengths[0] * TRAINING_SHARE), MIN_WINDOWS * longest_window)


def windows_of_split(store: TokenStore, spec: RowSpec) -> int:
    """Returns the number of windows of a whole split."""
    return -(-make_row_source(store, spec).epoch_length // spec.text_length)


def count_bytes(ctx: EvalContext, store: TokenStore, part: SplitPart) -> float:
    """Returns the bytes of text in the windows of a part.

    A token counts where it is predicted, with the bytes that the tokenizer states. If these do not
    add up to the text of the whole split, all are scaled so that they do.
    """
    if not part.label:
        return store.text_bytes
    spec = ctx.objective.for_eval().row_spec(ctx.settings.model, ctx.settings.train.seq_len)
    rows, n_prefix = make_row_source(store, spec), spec.image_prefix[0]
    lengths = ctx.data.tokenizer.byte_lengths()
    # The token behind a prefix is predicted from no text; it is bos, or counted a row before.
    n_bytes = sum(
        int(lengths[item.tokens[n_prefix + spec.overlap :]].sum())
        for window in part.windows
        for item in rows.row(int(window))
    )
    return n_bytes * store.text_bytes / max(store.sum_over_tokens(lengths), 1)
