"""Evaluates a denoising model on fixed corrupted spans of held-out text.

`denoised_nats` is the loss per target token, sentinels and ends of sequence included.
`denoised_bits_per_byte` divides all of these nats by the bytes of the corrupted spans, so that it
compares models with different tokenizers; a character that a span cuts counts as one byte.
`denoised_span_match` is the share of spans in which every token is the most likely one given the
correct tokens before it (teacher forcing, no decoding). In infill mode a span is a whole row.
"""

import functools
import hashlib
import math
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from data.tokenizers import Specials
from eval.task import EvalContext, Score
from eval.tasks.bits_per_byte import SPLITS, read_batches, window_bytes
from objectives import Objective, Trainable
from training import mesh as meshes

MAX_SPANS = 128  # Largest number of spans in a row.


class DenoisingLoss:
    """Measures loss, accuracy and span match on the corrupted spans of each split."""

    version: ClassVar[int] = 2

    def __init__(self, splits: tuple[str, ...] = SPLITS):
        self.splits = splits

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every split."""
        for split in self.splits:
            yield from _evaluate(ctx, split)


def _evaluate(ctx: EvalContext, split: str) -> Iterator[Score]:
    tokenizer, objective = ctx.data.tokenizer, ctx.objective.for_eval()
    sharding, digest = meshes.batch_sharding(ctx.mesh), hashlib.sha256()
    totals, n_bytes = np.zeros(5), 0
    with jax.set_mesh(ctx.mesh):
        for arrays in read_batches(ctx, getattr(ctx.data, split)):
            digest.update(window_bytes(arrays))
            is_scored = arrays["weights"] != 0
            n_bytes += sum(
                len(_text_bytes(tokenizer.decode(ids[row_mask])))
                for ids, row_mask in zip(arrays["targets"], is_scored, strict=True)
            )
            spans = number_spans(arrays["targets"], is_scored, tokenizer.specials)
            batch = jax.device_put(arrays | {"spans": spans}, sharding)
            out = jax.device_get(_batch_sums(objective, ctx.trainable, batch))
            totals += [float(x) for x in out]
    nats, n_correct, n_tokens, n_correct_spans, n_spans = totals
    if not n_tokens:
        return
    yield Score(f"{split}/denoised_nats", nats / n_tokens, n_tokens)
    if n_bytes:
        yield Score(f"{split}/denoised_bits_per_byte", nats / math.log(2) / n_bytes, n_bytes)
    yield Score(f"{split}/denoised_accuracy", n_correct / n_tokens, n_tokens)
    yield Score(f"{split}/denoised_span_match", n_correct_spans / n_spans, n_spans)
    yield Score(f"{split}/eval_set_sha256", digest.hexdigest())


def number_spans(targets: np.ndarray, score_mask: np.ndarray, specials: Specials) -> np.ndarray:
    """Returns the span number of each scored token, counted from 1; 0 stands for no span.

    A sentinel begins a span. Neither sentinels nor eos belong to a span.
    """
    is_start = np.isin(targets, np.asarray(specials.sentinels, np.int32)) & score_mask
    spans = np.cumsum(is_start, axis=1)
    # In infill mode there are no sentinels, and the row is one span.
    spans = np.where(is_start.any(axis=1, keepdims=True), spans, 1)
    is_inside = score_mask & ~is_start & (targets != specials.eos)
    return np.where(is_inside, spans, 0).astype(np.int32)


def _text_bytes(text: str) -> bytes:
    """Encodes a text as UTF-8; a gap of bytes that form no character counts as one byte."""
    return text.replace("\ufffd", "?").encode()


@functools.partial(jax.jit, static_argnums=0)
def _batch_sums(
    objective: Objective, trainable: Trainable, batch: dict[str, Array]
) -> tuple[Array, ...]:
    """Returns the sums of nats, correct tokens, tokens, fully correct spans and spans."""
    out = objective.forward(trainable, batch, None)
    terms, metrics = objective.reduce(trainable, out, batch)
    n_targets = out.weights.shape[1]
    # This selects the same tokens as `score_masked`.
    _, indices = jax.lax.top_k(batch["weights"], n_targets)
    spans = jnp.take_along_axis(batch["spans"], indices, axis=1)
    rows = jnp.arange(len(spans))[:, None]
    exists = jnp.zeros((len(spans), MAX_SPANS), bool).at[rows, spans].set(True)
    has_error = jnp.zeros((len(spans), MAX_SPANS), bool).at[rows, spans].max(~out.scores.correct)
    exists = exists.at[:, 0].set(False)
    nats, correct = terms["denoised_nats"], metrics["accuracy"]
    return nats.sum, correct.sum, nats.weight, jnp.sum(exists & ~has_error), jnp.sum(exists)
