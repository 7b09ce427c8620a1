"""Computes the likelihood of texts after contexts, in the model's windows (`eval/framing.py`).

Every token of a text is scored once, with as much context as a row has room for. A text that is
longer than a row is split as lm-evaluation-harness splits it: the last window is full, and only
its new tokens count. A context that does not fit before its text loses its beginning, and the log
says so. In an encoder-decoder the encoder reads the context, framed as a whole text, and the
decoder the text.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from data.framing import Reading
from data.tokenizers import Tokenizer
from errors import DataError
from eval.framing import reading
from eval.length_buckets import RowArrays, bucketed_batches
from eval.task import EvalContext
from objectives import Objective, Trainable
from objectives.token_loss import MaskedTokenScores
from training import mesh as meshes
from training.distributed.multihost import to_host
from training.run.console import LOGGER


class Likelihood(NamedTuple):
    """Holds the likelihood of one text after its context."""

    nats: float  # -log p(text | context)
    is_greedy: bool  # True if every token of the text is the most likely one.
    n_tokens: int


class EncodedPair(NamedTuple):
    """Holds a context and a text as ids."""

    ids: np.ndarray  # The context and the text, or the start of a decoder and the text.
    text_start: int  # Index of `ids` at which the text begins.
    source: np.ndarray | None = None  # What an encoder reads: the context.


def compute_likelihoods(
    ctx: EvalContext, pairs: list[tuple[str, str]], *, has_markers: bool = False
) -> list[Likelihood]:
    """Returns the likelihood of the text of each pair (context, text), in the order of the pairs.

    What stands before a context, or before a text without one, is that of `eval.framing.reading`.

    Args:
        ctx: the model.
        pairs: contexts and texts.
        has_markers: whether special tokens that a text spells become their ids.

    Raises:
        DataError: if a text has no context, and the tokenizer no token that could precede it.
    """
    tokenizer, reads = ctx.data.tokenizer, reading(ctx)
    rows, row_pairs = list[RowArrays](), list[int]()
    if not reads.empty_context and not all(context.strip() for context, _ in pairs):
        raise DataError(
            "the likelihood of a text without a context needs a token before it, but the tokenizer "
            "has neither bos, eos nor pad; add one of them to its files"
        )
    encode = _encode_source_pair if ctx.settings.model.encoder.depth else _encode_pair
    encoded = [encode(tokenizer, reads, *pair, has_markers) for pair in pairs]
    _warn_of_cut_contexts(encoded, reads.window)
    for pair_index, pair in enumerate(encoded):
        for row in _windows(pair, reads):
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
    counts = [len(pair.ids) - pair.text_start for pair in encoded]
    fields = zip(nats.tolist(), is_greedy.tolist(), counts, strict=True)
    return [Likelihood(*values) for values in fields]


def _warn_of_cut_contexts(encoded: list[EncodedPair], window: int) -> None:
    """Says how many contexts lose their beginning; a text without a context is not cut."""
    n_cut = sum(
        len(pair.source) > window
        if pair.source is not None
        else pair.text_start > 1 and len(pair.ids) > window + 1
        for pair in encoded
    )
    if n_cut:
        LOGGER.warning(
            "%d of %d contexts do not fit the window of %d tokens and lose their beginning",
            *(n_cut, len(encoded), window),
        )


def _encode_pair(
    tokenizer: Tokenizer, reads: Reading, context: str, text: str, has_markers: bool = False
) -> EncodedPair:
    """Returns the framed context and the text as ids of one row.

    Context and text are encoded together if that leaves the ids of the context unchanged, else
    separately. A space between them belongs to the text.
    """
    stripped = context.rstrip()
    text = context[len(stripped) :] + text
    encode = tokenizer.encode_marked if has_markers else tokenizer.encode
    context_ids, joint_ids = encode([stripped, stripped + text])
    n = len(context_ids)
    is_prefix = np.array_equal(joint_ids[:n], context_ids)
    text_ids = joint_ids[n:]
    if not is_prefix:
        is_marked = has_markers and stripped.endswith(tokenizer.special_texts)
        inner = tokenizer.going_on(is_marked)
        text_ids = (inner.encode_marked if has_markers else inner.encode)([text])[0]
    if not n and tuple(text_ids[: len(reads.empty_context)].tolist()) == reads.empty_context:
        return EncodedPair(text_ids.astype(np.int32), len(reads.empty_context))  # It frames itself.
    framed = reads.frame(context_ids) if n else np.array(reads.empty_context)
    return EncodedPair(np.concatenate([framed, text_ids]).astype(np.int32), len(framed))


def _encode_source_pair(
    tokenizer: Tokenizer, reads: Reading, context: str, text: str, has_markers: bool = False
) -> EncodedPair:
    """Returns the framed context for the encoder, and the text behind the start of the decoder.

    Both are encoded separately. A space between them belongs to the text.
    """
    stripped = context.rstrip()
    encode = tokenizer.encode_marked if has_markers else tokenizer.encode
    context_ids, text_ids = encode([stripped, context[len(stripped) :] + text])
    framed = [*reads.frame(context_ids), *reads.suffix] if len(context_ids) else reads.empty_context
    ids = np.concatenate([[tokenizer.specials.decoder_start], text_ids])
    return EncodedPair(ids.astype(np.int32), 1, np.array(framed, np.int32))


def _windows(pair: EncodedPair, reads: Reading) -> Iterator[RowArrays]:
    """Yields rows that together predict each token of the text once."""
    ids, window_length = pair.ids, reads.window
    source = {} if pair.source is None else {"source_tokens": pair.source[-window_length:]}
    n_scored, n = pair.text_start, len(ids)
    while n_scored < n:
        end = min(n_scored + window_length, n)
        tokens = ids[max(0, end - 1 - window_length) : end - 1]
        weights = np.zeros(len(tokens), np.float32)
        weights[len(tokens) - (end - n_scored) :] = 1
        row = {"tokens": tokens, "targets": ids[end - len(tokens) : end], "weights": weights}
        yield row | source
        n_scored = end


@functools.partial(jax.jit, static_argnums=0)
def _score_batch(
    objective: Objective, trainable: Trainable, batch: dict[str, Array]
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    out = objective.forward(trainable, batch, None)
    # The scores of denoising are in another order than the tokens.
    weights = out.weights if isinstance(out, MaskedTokenScores) else batch["weights"]
    scores, is_counted = out.scores, weights > 0
    nats = jnp.sum(jnp.where(is_counted, scores.loss, 0), axis=-1)
    return nats, jnp.all(scores.correct | ~is_counted, axis=-1)
