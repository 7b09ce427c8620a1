"""Attention in plain XLA that never builds T x S: chunks of queries against the keys they may see.

A chunk has all the scores of its queries, so its softmax needs no correction by other chunks. The
backward pass recomputes the scores (Rabe & Staats, arXiv:2112.05682); without dropout and biases it
does so from the kept outputs and log-sums of each query (Dao et al., arXiv:2205.14135, algorithm
4), so that neither the softmax nor the product with the values is repeated. Where queries and keys
are one row, keys that no query of a chunk can see are skipped. Inside, heads come first: q is
[B G rep T K], k is [B G S K] and v is [B G S Kv].
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.attention.mask import AttentionSpec, TokenIndex

CHUNK_SIZE = 128  # queries in a chunk
NUM_BANDS = 4  # groups of neighboring chunks; all chunks of a band read the same keys
Tree = TypeVar("Tree")  # a pytree of arrays
Results = TypeVar("Results", bound=tuple[Array, ...])


class WindowLayout(NamedTuple):
    """A window measured in chunks: a chunk sees itself and this many chunks before and after it."""

    num_chunks: int
    chunk_size: int
    before: int
    after: int


def chunked(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G Kv"],
    queries: TokenIndex,
    keys: TokenIndex,
    spec: AttentionSpec,
) -> Float[Array, "B T H Kv"]:
    """Computes attention chunk by chunk: in windows if the window is short, else in bands."""
    (B, T, H, K), G = q.shape, k.shape[2]
    q = q.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    queries, keys = queries.heads_first(), keys.heads_first()
    if T <= CHUNK_SIZE:
        o = _attend(q, k, v, queries, keys, 0, spec=spec)
    else:
        wide = jnp.promote_types(q.dtype, jnp.float32)  # gradients of k, v are summed over chunks
        rows = (q, k.astype(wide), v.astype(wide), queries, keys)
        layout = _window_layout(T, spec, keys)
        o = _attend_bands(*rows, spec) if layout is None else _attend_windows(*rows, spec, layout)
    return o[:, :, :, :T].transpose(0, 3, 1, 2, 4).reshape(B, T, H, -1)


def _attend(
    q: Array,
    k: Array,
    v: Array,
    queries: TokenIndex,
    keys: TokenIndex,
    chunk: Array | int,
    *,
    spec: AttentionSpec,
) -> Float[Array, "B G rep T Kv"]:
    """Computes the attention of one chunk of queries.

    The output is divided by the sum of the weights, because it is narrower than the weights.
    """
    if spec.bias is None and not spec.dropout:
        plain_spec = dataclasses.replace(spec, sinks=None)
        return _attend_plainly(q, k, v, queries, keys, spec.sinks, plain_spec)
    return jax.checkpoint(functools.partial(attend_chunk, spec=spec))(
        q, k, v, queries, keys, chunk
    )[0]


def attend_chunk(
    q: Array,
    k: Array,
    v: Array,
    queries: TokenIndex,
    keys: TokenIndex,
    chunk: Array | int,
    *,
    spec: AttentionSpec,
) -> tuple[Float[Array, "B G rep T Kv"], Float[Array, "B G rep T 1"]]:
    """Returns outputs and the logsumexp of the scores of each query: inf if it sees no key.

    The logsumexp includes the sink.
    """
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = spec.adjust_scores(_products(q, k), queries, keys)
    sinks = spec.head_sinks(wide, *q.shape[1:3])
    top = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
    top = jax.lax.stop_gradient(top if sinks is None else jnp.maximum(top, sinks))
    weights = jnp.exp(scores - jnp.where(top == -jnp.inf, 0, top))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    total = total if sinks is None else total + jnp.exp(sinks - top)
    weights = spec.apply_dropout(weights, chunk).astype(q.dtype)
    o = jnp.einsum("bgrts,bgsv->bgrtv", weights, v.astype(q.dtype), preferred_element_type=wide)
    o = (o / jnp.where(total == 0, 1, total)).astype(q.dtype)
    return o, jnp.where(total == 0, jnp.inf, top + jnp.log(total))


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend_plainly(
    q: Array,
    k: Array,
    v: Array,
    queries: TokenIndex,
    keys: TokenIndex,
    sinks: Array | None,
    spec: AttentionSpec,
) -> Float[Array, "B G rep T Kv"]:
    """Computes the attention of one chunk without biases and dropout."""
    return _attend_plainly_forward(q, k, v, queries, keys, sinks, spec)[0]


def _attend_plainly_forward(
    q: Array,
    k: Array,
    v: Array,
    queries: TokenIndex,
    keys: TokenIndex,
    sinks: Array | None,
    spec: AttentionSpec,
) -> tuple[Array, tuple]:
    spec = dataclasses.replace(spec, sinks=sinks)
    o, lse = attend_chunk(q, k, v, queries, keys, 0, spec=spec)
    return o, (q, k, v, queries, keys, sinks, o, lse)


def attend_chunk_gradients(spec: AttentionSpec, residuals: tuple, d_o: Array) -> tuple:
    """Returns the gradients of the arguments of `_attend_plainly` but for `spec`.

    The residuals are these arguments, the outputs and their logsumexp. The last two may be those of
    more keys than `k`: the gradients are then those that come through these keys.
    """
    q, k, v, queries, keys, sinks, o, lse = residuals
    product = functools.partial(jnp.einsum, preferred_element_type=lse.dtype)
    scores, adjust_vjp = jax.vjp(spec.adjust_scores, _products(q, k), queries, keys)
    weights = jnp.exp(scores - lse)
    d_v = product("bgrts,bgrtv->bgsv", weights.astype(q.dtype), d_o)
    d_weights = product("bgrtv,bgsv->bgrts", d_o, v.astype(q.dtype))
    mean = jnp.sum(d_o.astype(lse.dtype) * o, axis=-1, keepdims=True)  # of d_weights under weights
    d_scores, d_queries, d_keys = adjust_vjp(weights * (d_weights - mean))
    d_sinks = None
    if sinks is not None:
        sink_scores = sinks.astype(lse.dtype).reshape(*lse.shape[1:3], 1, 1)
        of_sink = jnp.exp(sink_scores - lse) * mean
        d_sinks = -jnp.sum(of_sink, axis=(0, 3, 4)).reshape(sinks.shape).astype(sinks.dtype)
    d_scores = d_scores.astype(q.dtype)
    d_q = product("bgrts,bgsk->bgrtk", d_scores, k.astype(q.dtype)).astype(q.dtype)
    d_k = product("bgrts,bgrtk->bgsk", d_scores, q)
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), d_queries, d_keys, d_sinks


_attend_plainly.defvjp(_attend_plainly_forward, attend_chunk_gradients)


def _products(q: Array, k: Array) -> Float[Array, "B G rep T S"]:
    wide = jnp.promote_types(q.dtype, jnp.float32)
    return jnp.einsum("bgrtk,bgsk->bgrts", q, k.astype(q.dtype), preferred_element_type=wide)


def _attend_bands(
    q: Array, k: Array, v: Array, queries: TokenIndex, keys: TokenIndex, spec: AttentionSpec
) -> Float[Array, "B G rep T Kv"]:
    """Attends chunks in a few bands; a band reads all keys that any of its chunks can see."""
    S, (left, right) = k.shape[2], spec.mask_bounds(keys)
    count, size = _chunk_sizes(q.shape[3], CHUNK_SIZE)
    q, queries = _pad_tokens((q, queries), 0, count * size)
    bands = 1 if left is None and right is None else min(NUM_BANDS, count)
    outputs = []
    for first, last in itertools.pairwise(count * i // bands for i in range(bands + 1)):
        start = 0 if left is None else min(max(0, first * size - left), S)
        stop = S if right is None else max(start, min(last * size + right, S))
        k_, v_, keys_ = _slice_tokens((k, v, keys), start, stop)

        def attend(inputs: tuple, k_=k_, v_=v_, keys_=keys_) -> Array:
            chunk, q, queries = inputs
            return _attend(q, k_, v_, queries, keys_, chunk, spec=spec)

        rows = _split_chunks(_slice_tokens((q, queries), first * size, last * size), last - first)
        o = jax.lax.map(attend, (jnp.arange(first, last), *rows))
        outputs.append(_merge_chunks(o))
    return jnp.concatenate(outputs, axis=3)


def _attend_windows(
    q: Array,
    k: Array,
    v: Array,
    queries: TokenIndex,
    keys: TokenIndex,
    spec: AttentionSpec,
    layout: WindowLayout,
) -> Float[Array, "B G rep T Kv"]:
    """Attends chunks that each have their own copy of the before + 1 + after chunks of keys."""
    count, size, before, after = layout
    q, queries = _pad_tokens((q, queries), 0, count * size)
    rows = _pad_tokens((k, v, keys), before * size, (before + count + after) * size)
    key_chunks = _split_chunks(rows, before + count + after)

    def neighbors(x: Array) -> Array:
        shifted = [x[i : i + count] for i in range(before + 1 + after)]
        return jnp.concatenate(shifted, axis=_token_axis(x))

    def attend(inputs: tuple) -> Array:
        chunk, (q, queries), (k, v, keys) = inputs
        return _attend(q, k, v, queries, keys, chunk, spec=spec)

    query_chunks = _split_chunks((q, queries), count)
    inputs = (jnp.arange(count), query_chunks, jax.tree.map(neighbors, key_chunks))
    return _merge_chunks(jax.lax.map(attend, inputs))


def map_query_chunks(
    function: Callable[..., Results],
    q: Float[Array, "B G rep T K"],
    *others: Array | TokenIndex,
    num_sums: int = 0,
) -> Results:
    """Runs `function` on chunks of the queries, whose results are joined along tokens.

    `others` are further arrays of the queries. The last `num_sums` results are sums over queries,
    which are added up.
    """
    T, rows = q.shape[3], (q, *others)
    count, size = _chunk_sizes(T, CHUNK_SIZE)
    chunks = _split_chunks(_pad_tokens(rows, 0, count * size), count)
    like = jax.eval_shape(lambda chunks: function(*jax.tree.map(lambda x: x[0], chunks)), chunks)
    num_joined = len(like) - num_sums

    def step(sums: tuple[Array, ...], chunk: tuple) -> tuple[tuple[Array, ...], tuple]:
        results = function(*chunk)
        return jax.tree.map(jnp.add, sums, results[num_joined:]), results[:num_joined]

    zeros = tuple(jnp.zeros(x.shape, x.dtype) for x in like[num_joined:])
    sums, joined = jax.lax.scan(step, zeros, chunks)
    return cast(Results, (*(_merge_chunks(x)[:, :, :, :T] for x in joined), *sums))


def _window_layout(T: int, spec: AttentionSpec, keys: TokenIndex) -> WindowLayout | None:
    """Returns the window in chunks of at most a quarter of it, or None if it is not short."""
    left, right = spec.mask_bounds(keys)
    if left is None or right is None:
        return None
    count, size = _chunk_sizes(T, max(CHUNK_SIZE, (left + right) // 4))
    before, after = (max(0, -(-side // size)) for side in (left, right))
    return WindowLayout(count, size, before, after) if 2 * (before + 1 + after) <= count else None


def _chunk_sizes(length: int, size: int) -> tuple[int, int]:
    """Returns the number of chunks of about `size`, and their length: a multiple of 8."""
    count = -(-length // size)
    return count, -(-length // (8 * count)) * 8


def _token_axis(x: Array) -> int:
    """Returns the axis of the tokens: the last one of [B T], the last but one of q, k and v."""
    return x.ndim - (1 if x.ndim < 4 else 2)


def _slice_tokens(tree: Tree, start: int, stop: int) -> Tree:
    return jax.tree.map(lambda x: jax.lax.slice_in_dim(x, start, stop, axis=_token_axis(x)), tree)


def _pad_tokens(tree: Tree, before: int, length: int) -> Tree:
    """Pads the tokens to `length`, `before` of them in front; padding is 0, which is segment 0."""

    def pad(x: Array) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[_token_axis(x)] = (before, length - before - x.shape[_token_axis(x)])
        return jnp.pad(x, widths)

    return jax.tree.map(pad, tree)


def _split_chunks(tree: Tree, num_chunks: int) -> Tree:
    """Splits the tokens into `num_chunks` equal chunks along a new first axis."""

    def split(x: Array) -> Array:
        axis = _token_axis(x)
        size = x.shape[axis] // num_chunks
        x = x.reshape(*x.shape[:axis], num_chunks, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    return jax.tree.map(split, tree)


def _merge_chunks(x: Float[Array, "chunks B G rep Q Kv"]) -> Float[Array, "B G rep chunks*Q Kv"]:
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], -1, x.shape[-1])
