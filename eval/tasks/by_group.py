"""Evaluates a causal model on each group of documents: bits per byte by language or by source.

The groups are those of `data.groups.field`. The windows are those of `bits_per_byte`, and each
predicted token counts for the group of its document, its end included. Tokens per byte tell how
well the tokenizer suits a group.
"""

import functools
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data.packing import PackedRows
from data.store import TokenStore
from errors import ConfigError
from eval.progress import log_progress
from eval.split_part import select_part
from eval.task import EvalContext, Score
from eval.tasks.bits_per_byte import bits_per_byte
from objectives import Batch, Objective, Trainable
from training import mesh as meshes
from training.distributed.multihost import to_host


class GroupSums(NamedTuple):
    """Sums over the predicted tokens of each group."""

    nats: Float[np.ndarray, " G"]
    n_bytes: Float[np.ndarray, " G"]  # As the tokenizer states them, by token.


class GroupBitsPerByte:
    """Measures bits per byte, and tokens per byte, of each group of documents."""

    version: ClassVar[int] = 1

    def __init__(self, splits: tuple[str, ...] = ("valid", "test")):
        self.splits = splits

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every split and group.

        Raises:
            ConfigError: if the documents have no groups.
        """
        for split in self.splits:
            store: TokenStore = getattr(ctx.data, split)
            if store.groups is None:
                raise ConfigError(
                    "task by_group needs groups of documents, and data.groups.field is empty; name "
                    "the field with the language or the source of each document"
                )
            part, sums = select_part(ctx, store), sum_by_group(ctx, store)
            for group, name in enumerate(store.group_names):
                counts = store.index["groups"][name]
                n_bytes = float(counts["text_bytes"])
                if part.label:
                    n_bytes *= sums.n_bytes[group] / max(_stated_bytes(ctx, store, group), 1)
                if n_bytes:
                    value = bits_per_byte(sums.nats[group], n_bytes)
                    yield Score(f"{split}/{name}/bits_per_byte", value, n_bytes)
                ratio = counts["tokens"] / max(counts["text_bytes"], 1)
                yield Score(f"{split}/{name}/tokens_per_byte", ratio, counts["text_bytes"])


def sum_by_group(ctx: EvalContext, store: TokenStore) -> GroupSums:
    """Returns sums over the windows of a split, or of the part that `eval.limit` selects."""
    settings, objective = ctx.settings, ctx.objective.for_eval()
    spec = objective.row_spec(settings.model, settings.train.seq_len)
    make_row = objective.make_row_fn(settings.model, settings.train.seq_len, ctx.data.tokenizer)
    rows = PackedRows(store, spec.text_length, spec.overlap)
    batch_size = -(-settings.eval.batch_size // ctx.mesh.size) * ctx.mesh.size
    lengths, groups = ctx.data.tokenizer.byte_lengths(), np.asarray(store.groups)
    n_groups, sharding = len(store.group_names), meshes.batch_sharding(ctx.mesh)
    nats, n_bytes = np.zeros(n_groups), np.zeros(n_groups)
    windows = select_part(ctx, store).windows
    starts = range(0, len(windows), batch_size)
    with jax.set_mesh(ctx.mesh):
        for start in log_progress(starts, len(starts)):
            slices = [rows.row(int(i)) for i in windows[start : start + batch_size]]
            slices += [[]] * (batch_size - len(slices))
            generator = np.random.default_rng(0)  # Rows of evaluation have nothing random.
            row_arrays = [
                make_row([s.tokens for s in row], spec.text_length, generator) for row in slices
            ]
            arrays = {name: np.stack([row[name] for row in row_arrays]) for name in row_arrays[0]}
            losses = to_host(
                _token_nats(objective, ctx.trainable, jax.device_put(arrays, sharding))
            )
            for row, row_losses in zip(slices, np.asarray(losses, np.float64), strict=True):
                position = 0
                for item in row:
                    group, targets = int(groups[item.document]), item.tokens[spec.overlap :]
                    nats[group] += row_losses[position : position + len(targets)].sum()
                    n_bytes[group] += lengths[targets].sum()
                    position += len(targets)
    return GroupSums(nats, n_bytes)


def _stated_bytes(ctx: EvalContext, store: TokenStore, group: int) -> int:
    """Returns the bytes of a group in the whole split, as the tokenizer states them by token."""
    lengths = ctx.data.tokenizer.byte_lengths()
    members = np.flatnonzero(store.groups == group)
    return sum(int(lengths[store.document(int(d))].sum()) for d in members)


@functools.partial(jax.jit, static_argnums=0)
def _token_nats(objective: Objective, trainable: Trainable, batch: Batch) -> Float[Array, "B T"]:
    losses = objective.forward(trainable, batch, None).scores.loss
    return jnp.where(batch["weights"] > 0, losses, 0)
