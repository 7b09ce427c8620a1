"""Computes feature vectors of texts: means over the tokens of a text, for every layer of a model.

The objective's own head plays no part. The model reads as its objective reads: causally,
bidirectionally, or with the whole text as a prefix (denoising without an encoder). In an
encoder-decoder the encoder reads the text.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch import Model, SequenceInfo
from arch.layer_outputs import layer_outputs
from arch.sequence import View
from data.framing import Reading
from eval.length_buckets import bucketed_batches
from eval.task import EvalContext
from objectives import Trainable
from training import mesh as meshes
from training.distributed.multihost import to_host


def pooled_features(
    ctx: EvalContext, texts: list[str], reads: Reading | None = None
) -> Float[np.ndarray, "N L D"]:
    """Returns the mean over the tokens of each text, for each of L layers.

    The layers are the embedding, every block and the last norm. A text that is longer than a row is
    read in several rows. The features of a text without tokens are 0.

    Args:
        ctx: the model.
        texts: the texts.
        reads: the window, and the ids around each row, which count as tokens of the text; None is a
            row of training without ids around it.
    """
    prefix, suffix = (reads.prefix, reads.suffix) if reads else ((), ())
    window = reads.window if reads else ctx.settings.train.seq_len
    length, rows, row_texts = max(window - len(prefix) - len(suffix), 1), [], list[int]()
    for text_index, ids in enumerate(ctx.data.tokenizer.encode(texts)):
        is_framed = bool(prefix or suffix)
        for start in range(0, max(len(ids), is_framed), length):
            tokens = np.concatenate([prefix, ids[start : start + length], suffix])
            rows.append({"tokens": tokens.astype(np.int32)})
            row_texts.append(text_index)
    view, sharding, sums = ctx.settings.row_spec.view, meshes.batch_sharding(ctx.mesh), None
    lengths = [len(row["tokens"]) for row in rows]
    counts = np.bincount(np.array(row_texts, int), lengths, len(texts))
    with jax.set_mesh(ctx.mesh):
        for row_indices, arrays in bucketed_batches(ctx, rows):
            out = _layer_sums(ctx.trainable.model, jax.device_put(arrays, sharding), view)
            indices = [row_texts[i] for i in row_indices]
            row_sums = np.asarray(to_host(out), np.float64)[: len(indices)]
            sums = np.zeros((len(texts), *row_sums.shape[1:])) if sums is None else sums
            np.add.at(sums, indices, row_sums)
    if sums is None:
        return np.zeros((len(texts), 1, ctx.settings.model.width))
    return sums / np.maximum(counts, 1)[:, None, None]


def with_random_init(ctx: EvalContext, seed: int = 0) -> EvalContext:
    """Returns the context with model and objective head initialized at random, not trained."""
    config, objective = ctx.trainable.model.config, ctx.objective

    def init() -> Trainable:
        key = jax.random.key(seed)
        return Trainable(
            Model(config, key=key), objective.make_head(config, jax.random.fold_in(key, 1))
        )

    shardings = meshes.param_shardings(ctx.mesh, jax.eval_shape(init))
    with jax.set_mesh(ctx.mesh):
        return ctx._replace(trainable=jax.jit(init, out_shardings=shardings)())


def text_structure(model: Model, batch: dict[str, Array], view: View) -> SequenceInfo:
    """Returns the structure of rows of one text each, as the view of an objective reads them.

    An encoder reads in both directions. Under the view "prefix" the whole text is the prefix. Token
    types are those of the batch, if it has any.
    """
    is_bidirectional = view == "bidirectional" or model.encoder is not None
    is_prefix = view == "prefix" and not is_bidirectional
    return SequenceInfo(
        batch["positions"],
        batch["segment_ids"],
        batch["segment_ids"] != 0 if is_prefix else None,
        causal=not is_bidirectional,
        token_type_ids=batch.get("token_type_ids"),
    )


@functools.partial(jax.jit, static_argnames="view")
def _layer_sums(model: Model, batch: dict[str, Array], view: View) -> Float[Array, "B L D"]:
    is_text, seq = batch["segment_ids"] != 0, text_structure(model, batch, view)

    def sum_tokens(x: Array) -> Array:
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.sum(jnp.where(is_text[..., None], x.astype(dtype), 0), axis=1)

    return jnp.moveaxis(layer_outputs(model, batch["tokens"], seq, sum_tokens), 0, 1)
