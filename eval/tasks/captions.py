"""Evaluates captions given their images: bits per byte, and how much the own image is worth.

Every text of a split is read in rows of its own, behind its image if the model reads images. The
same texts are scored behind the image of another record: `image_gain` is the difference in bits per
byte. A model without a vision stack is scored on the texts alone, so that two runs compare captions
given images with captions alone. Intervals (95 %) are over records, by the normal approximation of
a ratio of means.
"""

import functools
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data.loader import Batches, HostBatch
from data.store import TokenStore
from data.text_rows import make_row_source
from errors import ConfigError
from eval.progress import log_progress
from eval.task import EvalContext, Score
from objectives import Batch, Objective, Trainable
from training import mesh as meshes
from training.distributed.multihost import to_host

CONFIDENCE_FACTOR = 1.959964  # Standard errors from the mean to the end of a 95 % interval.


class Captions:
    """Measures bits per byte of captions, given their image, another one, or none."""

    version: ClassVar[int] = 1

    def __init__(self, splits: tuple[str, ...] = ("valid", "test")):
        self.splits = splits

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every split.

        Raises:
            ConfigError: if the data have no images.
        """
        for split in self.splits:
            store: TokenStore = getattr(ctx.data, split)
            if store.image_shape is None:
                raise ConfigError(
                    f"task captions needs images, which data.source {ctx.settings.data.kind!r} "
                    "does not have; use digits or images, or remove it from eval.tasks"
                )
            n_bytes = text_bytes(ctx, store)
            bits = caption_bits(ctx, store)
            yield from _ratio(f"{split}/caption_bits_per_byte", bits, n_bytes)
            if ctx.settings.model.vision.n_prefix_tokens:
                other = caption_bits(ctx, store, shift=1)
                yield from _ratio(f"{split}/other_image_bits_per_byte", other, n_bytes)
                yield from _ratio(f"{split}/image_gain", other - bits, n_bytes)


def caption_bits(
    ctx: EvalContext, store: TokenStore, *, shift: int = 0
) -> Float[np.ndarray, " records"]:
    """Returns the bits of each caption, its end included, behind the image `shift` records on."""
    settings, objective = ctx.settings, ctx.objective.for_eval()
    spec = objective.row_spec(settings.model, settings.train.seq_len)
    rows = make_row_source(store, spec._replace(row_kind="image_texts"))
    batch_size = -(-settings.eval.batch_size // ctx.mesh.size) * ctx.mesh.size
    make_row = objective.make_row_fn(settings.model, settings.train.seq_len, ctx.data.tokenizer)
    batches = Batches(rows, batch_size, make_row, 0, binarize_weights=True)
    bits = np.zeros(store.n_documents)
    n_rows = rows.epoch_length // rows.row_length
    with jax.set_mesh(ctx.mesh):
        for step in log_progress(range(len(batches)), len(batches)):
            numbers = range(step * batch_size, min((step + 1) * batch_size, n_rows))
            documents = [rows.row(number)[0].document for number in numbers]
            batch = _with_images(batches[step], store, documents, shift, bool(spec.n_images))
            arrays = {
                name: jax.device_put(x, meshes.batch_array_sharding(ctx.mesh, x.shape))
                for name, x in batch.items()
            }
            nats = np.asarray(to_host(_row_nats(objective, ctx.trainable, arrays)), np.float64)
            np.add.at(bits, documents, nats[: len(documents)] / np.log(2))
    return bits


def text_bytes(ctx: EvalContext, store: TokenStore) -> Float[np.ndarray, " records"]:
    """Returns the bytes of each text as the tokenizer states them, scaled to those of the split."""
    lengths = ctx.data.tokenizer.byte_lengths()
    sizes = [lengths[store.document(i)].sum() for i in range(store.n_documents)]
    n_bytes = np.array(sizes, np.float64)
    scaled: np.ndarray = n_bytes * store.text_bytes / max(n_bytes.sum(), 1)
    return scaled


def _with_images(
    batch: HostBatch, store: TokenStore, documents: list[int], shift: int, has_images: bool
) -> HostBatch:
    """Returns a batch with the images of other records, or without images."""
    if not has_images:
        return {name: x for name, x in batch.items() if name != "images"}
    if not shift:
        return batch
    images = batch["images"].copy()
    for i, document in enumerate(documents):
        images[i] = store.image((document + shift) % store.n_documents)
    return batch | {"images": images}


def _ratio(
    name: str, values: Float[np.ndarray, " records"], weights: Float[np.ndarray, " records"]
) -> Iterator[Score]:
    """Yields sum(values) / sum(weights) with its interval over records."""
    mean = float(values.sum() / max(weights.sum(), 1))
    residuals = values - mean * weights
    error = float(np.sqrt(np.sum(residuals**2)) / max(weights.sum(), 1))
    yield Score(name, mean, float(weights.sum()))
    yield Score(f"{name}_low", mean - CONFIDENCE_FACTOR * error)
    yield Score(f"{name}_high", mean + CONFIDENCE_FACTOR * error)


@functools.partial(jax.jit, static_argnums=0)
def _row_nats(objective: Objective, trainable: Trainable, batch: Batch) -> Float[Array, " B"]:
    losses = objective.forward(trainable, batch, None).scores.loss
    return jnp.sum(losses, axis=1, where=batch["weights"] > 0)
