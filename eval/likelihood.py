"""Computes the likelihood of texts after contexts, in windows of the training length.

Every token of a text is scored once, with as much context as a row has room for. A text that is
longer than a row is split as lm-evaluation-harness splits it: the last window is full, and only
its new tokens count. A context that does not fit before its text loses its beginning, and the log
says so.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from data.tokenizers import Tokenizer
from eval.length_buckets import RowArrays, bucketed_batches
from eval.task import EvalContext
from objectives import Objective, Trainable
from training import mesh as meshes
from training.distributed.multihost import to_host
from training.run.console import LOGGER


class Likelihood(NamedTuple):
    """Holds the likelihood of one text after its context."""

    nats: float  # -log p(text | context)
    is_greedy: bool  # True if every token of the text is the most likely one.
    n_tokens: int


def compute_likelihoods(ctx: EvalContext, pairs: list[tuple[str, str]]) -> list[Likelihood]:
    """Returns the likelihood of the text of each pair (context, text), in the order of the pairs.

    A text with an empty context follows the token bos.
    """
    tokenizer = ctx.data.tokenizer
    tokenizer.specials.require("bos", needed_by="the likelihood of a text")
    window, rows, row_pairs = ctx.settings.train.seq_len, list[RowArrays](), list[int]()
    encoded = [_encode_pair(tokenizer, *pair) for pair in pairs]
    _warn_of_cut_contexts(encoded, window)
    for pair_index, (ids, text_start) in enumerate(encoded):
        for row in _windows(ids, text_start, window):
            rows.append(row)
            row_pairs.append(pair_index)
    nats, is_greedy = np.zeros(len(pairs)), np.ones(len(pairs), bool)
    objective, sharding = ctx.objective.for_eval(), meshes.batch_sharding(ctx.mesh)
    with jax.set_mesh(ctx.mesh):
        for row_indices, arrays in bucketed_batches(ctx, rows):
            scores = _score_batch(objective, ctx.trainable, jax.device_put(arrays, sharding))
            indices = [row_pairs[i] for i in row_indices]
            row_nats, row_is_greedy = (np.asarray(x)[: len(indices)] for x in to_host(scores))
            np.add.at(nats, indices, row_nats)
            np.logical_and.at(is_greedy, indices, row_is_greedy)
    counts = [len(ids) - text_start for ids, text_start in encoded]
    fields = zip(nats.tolist(), is_greedy.tolist(), counts, strict=True)
    return [Likelihood(*values) for values in fields]


def _warn_of_cut_contexts(encoded: list[tuple[np.ndarray, int]], window: int) -> None:
    """Says how many contexts lose their beginning; a text without a context is not cut."""
    n_cut = sum(start > 1 and len(ids) > window + 1 for ids, start in encoded)
    if n_cut:
        LOGGER.warning(
            "%d of %d contexts do not fit the window of %d tokens and lose their beginning",
            *(n_cut, len(encoded), window),
        )


def _encode_pair(tokenizer: Tokenizer, context: str, text: str) -> tuple[np.ndarray, int]:
    """Returns bos, the context and the text as ids, and the index at which the text begins.

    Context and text are encoded together if that leaves the ids of the context unchanged, else
    separately. A space between them belongs to the text.
    """
    stripped = context.rstrip()
    text = context[len(stripped) :] + text
    context_ids, joint_ids, text_ids = tokenizer.encode([stripped, stripped + text, text])
    n = len(context_ids)
    is_prefix = np.array_equal(joint_ids[:n], context_ids)
    bos = np.array([tokenizer.specials.bos])
    ids = [bos, context_ids, joint_ids[n:] if is_prefix else text_ids]
    return np.concatenate(ids).astype(np.int32), n + 1


def _windows(ids: np.ndarray, text_start: int, window_length: int) -> Iterator[RowArrays]:
    """Yields rows that together predict each token of ids[text_start:] once."""
    n_scored, n = text_start, len(ids)
    while n_scored < n:
        end = min(n_scored + window_length, n)
        tokens = ids[max(0, end - 1 - window_length) : end - 1]
        weights = np.zeros(len(tokens), np.float32)
        weights[len(tokens) - (end - n_scored) :] = 1
        yield {"tokens": tokens, "targets": ids[end - len(tokens) : end], "weights": weights}
        n_scored = end


@functools.partial(jax.jit, static_argnums=0)
def _score_batch(
    objective: Objective, trainable: Trainable, batch: dict[str, Array]
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    scores, is_counted = objective.forward(trainable, batch, None).scores, batch["weights"] > 0
    nats = jnp.sum(jnp.where(is_counted, scores.loss, 0), axis=-1)
    return nats, jnp.all(scores.correct | ~is_counted, axis=-1)
