"""Evaluates the trained objective on held-out splits, or on the part that `eval.limit` selects.

All models see the same windows: documents in their order, cut at the length of a row, with nothing
carried over from one window to the next, and every byte once. What is random in a window, such as
the masked tokens, is a function of the window's index, and equal for all models and training
settings. The score `eval_set_sha256` is the hash of all windows as models see them, so equal hashes
prove equal data. No score depends on how windows are batched.
"""

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Array, Int

from data.loader import eval_batches
from data.store import TokenStore
from data.text_rows import make_row_source
from errors import DataError
from eval.progress import log_progress
from eval.split_part import count_bytes, select_part
from eval.task import EvalContext, Score
from objectives import Batch, Objective, RowFn, Trainable
from training import mesh as meshes

SPLITS = ("valid", "test")


class BitsPerByte:
    """Measures the loss of a causal model in bits per byte of text.

    The nats of every predicted token, the end of each document included, are divided by the bytes
    of the text. The measure does not depend on the tokenizer.
    """

    version: ClassVar[int] = 1

    def __init__(self, splits: tuple[str, ...] = SPLITS):
        self.splits = splits

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every split.

        Raises:
            DataError: if no token of a split has a loss weight.
        """
        for split in self.splits:
            store = getattr(ctx.data, split)
            nats, n_tokens = sum_terms(ctx, store)["nats"]
            if not n_tokens:
                raise DataError(
                    f"no token of the {split} split has a loss weight, so that it has no loss; "
                    "give documents of it weights above 0, or evaluate other tasks (eval.tasks)"
                )
            n_bytes = count_bytes(ctx, store, select_part(ctx, store))
            yield Score(f"{split}/bits_per_byte", bits_per_byte(nats, n_bytes), n_bytes)
            yield Score(f"{split}/nats_per_token", nats / n_tokens, n_tokens)


def mean_terms(
    totals: dict[str, tuple[float, float]], split: str, prefix: str, names: tuple[str, ...]
) -> Iterator[Score]:
    """Yields the means of the terms `names` as scores that are called SPLIT/PREFIX_NAME.

    A name that has the prefix already is not prefixed again. A term of weight 0 is left out.
    """
    for name in names:
        total, weight = totals[name]
        if weight:
            label = name if name.startswith(prefix) else f"{prefix}_{name}"
            yield Score(f"{split}/{label}", total / weight, weight)


def bits_per_byte(nats: float, n_bytes: float) -> float:
    """Converts the total nats of a text to bits per byte."""
    return nats / math.log(2) / max(n_bytes, 1)


def sum_terms(ctx: EvalContext, store: TokenStore) -> dict[str, tuple[float, float]]:
    """Returns the sum and the weight of every term and metric over the part of a store."""
    return evaluate_store(ctx, store)[0]


def evaluate_store(
    ctx: EvalContext, store: TokenStore, batches: Iterable[dict[str, np.ndarray]] | None = None
) -> tuple[dict[str, tuple[float, float]], str]:
    """Returns the sums of `sum_terms` and the SHA-256 of the windows that they are computed from.

    The windows are those of `batches` if given, else those of `read_batches`.
    """
    digest, totals = hashlib.sha256(), dict[str, np.ndarray]()
    objective = ctx.objective.for_eval()

    def add_to_totals(sums: dict[str, tuple[Array, Array]]) -> None:
        for name, pair in jax.device_get(sums).items():
            sums_of_batch = [np.sum(x, dtype=float) for x in pair]
            totals[name] = totals.get(name, np.zeros(2)) + sums_of_batch

    with jax.set_mesh(ctx.mesh):
        previous: dict[str, tuple[Array, Array]] = {}
        for arrays in read_batches(ctx, store) if batches is None else batches:
            shardings = {
                n: meshes.batch_array_sharding(ctx.mesh, x.shape) for n, x in arrays.items()
            }
            out = _batch_sums(objective, ctx.trainable, jax.device_put(arrays, shardings))
            # While the device computes, the host reads the batch before and makes the next one.
            digest.update(window_bytes(arrays))
            add_to_totals(previous)
            previous = out
        add_to_totals(previous)
    pairs = {name: (float(pair[0]), float(pair[1])) for name, pair in totals.items()}
    return pairs, digest.hexdigest()


def read_batches(
    ctx: EvalContext,
    store: TokenStore,
    make_row: RowFn | None = None,
    *,
    windows: Int[np.ndarray, " N"] | None = None,
    stride: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields windows of a store in batches, or every `stride`-th batch.

    The windows are those with the numbers `windows`; None: those that `eval.limit` selects. Rows
    are made by `make_row` if given, else by the objective.
    """
    settings, objective = ctx.settings, ctx.objective.for_eval()
    row_spec = objective.row_spec(settings.model, settings.train.seq_len)
    n_devices = ctx.mesh.size
    batch_size = -(-settings.eval.batch_size // n_devices) * n_devices
    row_fn = make_row or objective.make_row_fn(
        settings.model, settings.train.seq_len, ctx.data.tokenizer
    )
    windows = select_part(ctx, store).windows if windows is None else windows
    rows = make_row_source(store, row_spec)
    batches = eval_batches(rows, batch_size, row_fn, windows=windows)
    indices = range(0, len(batches), stride)
    yield from log_progress(map(batches.__getitem__, indices), len(indices))


def window_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """Returns inputs, targets, weights and segments of a batch as bytes, without padding rows.

    Images follow, if there are any.
    """
    is_real = arrays["segment_ids"].any(axis=tuple(range(1, arrays["segment_ids"].ndim)))
    names = ["tokens", "targets", "weights", "segment_ids", *({"images"} & arrays.keys())]
    columns = [arrays[name][is_real] for name in names]
    return b"".join(
        row.astype("<f4").tobytes() for window in zip(*columns, strict=True) for row in window
    )


@functools.partial(jax.jit, static_argnums=0)
def _batch_sums(
    objective: Objective, trainable: Trainable, batch: Batch
) -> dict[str, tuple[Array, Array]]:
    terms, metrics = objective.reduce(trainable, objective.forward(trainable, batch, None), batch)
    return {name: (x.sum, x.weight) for name, x in (metrics | terms).items()}
