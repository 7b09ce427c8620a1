"""Measures the loss by position in a document, in rows of up to eight times the training length.

The loss of a model that uses its context falls with the position. The loss of a model that does not
generalize beyond its training length rises there. All lengths read the same text; they differ only
in where it is cut.
"""

import functools
import math
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from data.loader import eval_batches
from data.store import TokenStore
from data.text_rows import make_row_source
from errors import ConfigError
from eval.progress import log_progress
from eval.split_part import BLOCK, SplitPart, count_bytes, select_part
from eval.task import EvalContext, Score
from eval.tasks.bits_per_byte import bits_per_byte
from objectives import Batch, Objective, Trainable
from training import mesh as meshes
from training.distributed.multihost import to_host

LENGTH_FACTORS = (1, 2, 4, BLOCK)  # Row lengths, as multiples of the training length.


class LossByPosition:
    """Measures the loss by row length and by position.

    `test/bits_per_byte@2x` is the loss in rows of twice the training length. `test/nats@64` is the
    loss of tokens from position 64 to the next power of two, in the longest rows.
    """

    version: ClassVar[int] = 1

    def __init__(self, splits: tuple[str, ...] = ("test",)):
        self.splits = splits

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every split.

        Raises:
            ConfigError: if rows begin with images, because texts are not packed behind them.
        """
        if ctx.settings.row_spec.n_images:
            raise ConfigError(
                "task positions reads packed texts, but model.vision puts an image before each; "
                "remove it from eval.tasks"
            )
        for split in self.splits:
            store = getattr(ctx.data, split)
            part = select_part(ctx, store).extended_to_blocks()
            n_bytes = count_bytes(ctx, store, part)
            for factor in self.length_factors(ctx):
                nats, n_tokens = loss_per_position(ctx, store, part, factor)
                bits = bits_per_byte(nats.sum(), n_bytes)
                yield Score(f"{split}/bits_per_byte@{factor}x", bits, n_bytes)
            for bucket in np.flatnonzero(n_tokens):
                name = f"{split}/nats@{2**bucket if bucket else 0}"
                yield Score(name, nats[bucket] / n_tokens[bucket], n_tokens[bucket])

    def length_factors(self, ctx: EvalContext) -> list[int]:
        """Returns the length factors that the model supports; a position table limits them."""
        positions, T = ctx.settings.model.positions, ctx.settings.train.seq_len
        max_factor = positions.max_length // T if positions.learned else max(LENGTH_FACTORS)
        return [factor for factor in LENGTH_FACTORS if factor <= max_factor]


def loss_per_position(
    ctx: EvalContext, store: TokenStore, part: SplitPart, length_factor: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sums of nats and of tokens, by power of two of the position in the document.

    Rows are `length_factor` times as long as those of training.
    """
    settings, objective = ctx.settings, ctx.objective.for_eval()
    length = length_factor * settings.train.seq_len
    n_devices = ctx.mesh.size
    batch_size = max(settings.eval.batch_size // length_factor, 1)
    batch_size = -(-batch_size // n_devices) * n_devices
    row_spec = objective.row_spec(settings.model, length)
    make_row = objective.make_row_fn(settings.model, length, ctx.data.tokenizer)
    n_buckets, sharding = math.ceil(math.log2(length)) + 1, meshes.batch_sharding(ctx.mesh)
    totals = np.zeros((2, n_buckets))
    with jax.set_mesh(ctx.mesh):
        batches = eval_batches(
            *(make_row_source(store, row_spec), batch_size, make_row),
            windows=np.unique(part.windows // length_factor),
        )
        indices = range(len(batches))
        for arrays in log_progress(map(batches.__getitem__, indices), len(indices)):
            batch = jax.device_put(arrays, sharding)
            out = _bucket_sums(objective, n_buckets, ctx.trainable, batch)
            totals += np.asarray(to_host(out), np.float64)
    return totals[0], totals[1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _bucket_sums(
    objective: Objective, n_buckets: int, trainable: Trainable, batch: Batch
) -> jax.Array:
    nats = objective.forward(trainable, batch, None).scores.loss
    weights = batch["weights"]
    positions = jnp.maximum(batch["positions"], 1).astype(jnp.float32)
    buckets = jnp.log2(positions + 0.5).astype(jnp.int32)
    one_hot = jax.nn.one_hot(buckets, n_buckets)
    return jnp.stack(
        [jnp.einsum("bt,btk->k", jnp.where(weights > 0, nats, 0), one_hot)]
        + [jnp.einsum("bt,btk->k", weights, one_hot)]
    )
