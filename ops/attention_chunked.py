"""Attention in plain XLA that never builds T x S: chunks of queries against the keys they may see.

A chunk's rows are whole, so its softmax needs no correction; its scores are computed again in the
backward pass (Rabe & Staats, arXiv:2112.05682). Where queries and keys are one row, keys that no
query of a chunk may see are left out. Inside, heads come first: q is [B G R T K], k is [B G S K].
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.attention_mask import Rule, Tokens

CHUNK = 128  # queries
BANDS = 4  # groups of chunks; the chunks of one read the same keys


class Local(NamedTuple):
    """A window in chunks: a chunk sees itself and so many before and after it."""

    chunks: int
    size: int
    before: int
    after: int


def chunked(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G E"],
    queries: Tokens,
    keys: Tokens,
    rule: Rule,
) -> Float[Array, "B T H E"]:
    (B, T, H, K), G = q.shape, k.shape[2]
    q = q.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    if T <= CHUNK:
        o = _attend(q, k, v, queries, keys, 0, rule=rule)
    else:
        wide = jnp.promote_types(q.dtype, jnp.float32)  # the chunks' gradients of k, v add up in it
        rows = (q, k.astype(wide), v.astype(wide), queries, keys)
        local = _local(T, rule, keys)
        o = _bands(*rows, rule) if local is None else _windows(*rows, rule, local)
    return o[:, :, :, :T].transpose(0, 3, 1, 2, 4).reshape(B, T, H, -1)


def _attend(
    q: Array, k: Array, v: Array, queries: Tokens, keys: Tokens, chunk: Array | int, *, rule: Rule
) -> Float[Array, "B G R T E"]:
    """One chunk; its output is divided by the sum of weights, being narrower than the weights."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    k, v = k.astype(q.dtype), v.astype(q.dtype)
    scores = jnp.einsum("bgrtk,bgsk->bgrts", q, k, preferred_element_type=wide)
    scores = rule.adjusted(scores, queries, keys)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    weights = jnp.exp(scores - jnp.where(top == -jnp.inf, 0, top))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = rule.dropped(weights, chunk).astype(q.dtype)
    o = jnp.einsum("bgrts,bgse->bgrte", weights, v, preferred_element_type=wide)
    return (o / jnp.where(total == 0, 1, total)).astype(q.dtype)


def _bands(
    q: Array, k: Array, v: Array, queries: Tokens, keys: Tokens, rule: Rule
) -> Float[Array, "B G R T E"]:
    """Chunks in a few bands, each with the keys that its chunks may see together."""
    S, (left, right) = k.shape[2], rule.reach(keys)
    count, size = _sizes(q.shape[3], CHUNK)
    q, queries = _padded((q, queries), 0, count * size)
    bands = 1 if left is None and right is None else min(BANDS, count)
    outputs = []
    for first, last in itertools.pairwise(count * i // bands for i in range(bands + 1)):
        near = 0 if left is None else min(max(0, first * size - left), S)
        far = S if right is None else max(near, min(last * size + right, S))
        k_, v_, keys_ = _cut((k, v, keys), near, far)

        @jax.checkpoint
        def one(part: tuple, k_=k_, v_=v_, keys_=keys_) -> Array:
            chunk, q, queries = part
            return _attend(q, k_, v_, queries, keys_, chunk, rule=rule)

        rows = _split(_cut((q, queries), first * size, last * size), last - first)
        outputs.append(_joined(jax.lax.map(one, (jnp.arange(first, last), *rows))))
    return jnp.concatenate(outputs, axis=3)


def _windows(
    q: Array, k: Array, v: Array, queries: Tokens, keys: Tokens, rule: Rule, local: Local
) -> Float[Array, "B G R T E"]:
    """Chunks, each with its own keys: copies of k and v, before + 1 + after of each."""
    count, size, before, after = local
    q, queries = _padded((q, queries), 0, count * size)
    rows = _padded((k, v, keys), before * size, (before + count + after) * size)
    blocks = _split(rows, before + count + after)

    def near(x: Array) -> Array:
        shifted = [x[i : i + count] for i in range(before + 1 + after)]
        return jnp.concatenate(shifted, axis=_axis(x))

    @jax.checkpoint
    def one(part: tuple) -> Array:
        chunk, (q, queries), (k, v, keys) = part
        return _attend(q, k, v, queries, keys, chunk, rule=rule)

    parts = (jnp.arange(count), _split((q, queries), count), jax.tree.map(near, blocks))
    return _joined(jax.lax.map(one, parts))


def _local(T: int, rule: Rule, keys: Tokens) -> Local | None:
    """The window in chunks of at most a quarter of it, if it is short beside the row."""
    left, right = rule.reach(keys)
    if left is None or right is None:
        return None
    count, size = _sizes(T, max(CHUNK, (left + right) // 4))
    before, after = (max(0, -(-side // size)) for side in (left, right))
    return Local(count, size, before, after) if 2 * (before + 1 + after) <= count else None


def _sizes(length: int, size: int) -> tuple[int, int]:
    """How many chunks of at most about `size`, and how long: multiples of 8, little padding."""
    count = -(-length // size)
    return count, -(-length // (8 * count)) * 8


def _axis(x: Array) -> int:
    """Which axis is the tokens': of [B T] the last, of [B G R T K] and [B G S K] the one before."""
    return x.ndim - (1 if x.ndim < 4 else 2)


def _cut(tree: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.slice_in_dim(x, start, stop, axis=_axis(x)), tree)


def _padded(tree: Any, before: int, length: int) -> Any:
    """Zeros, so segment 0, `before` the tokens and after them, `length` in all."""

    def pad(x: Array) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[_axis(x)] = (before, length - before - x.shape[_axis(x)])
        return jnp.pad(x, widths)

    return jax.tree.map(pad, tree)


def _split(tree: Any, count: int) -> Any:
    """`count` equal pieces of the tokens, along a new first axis."""

    def split(x: Array) -> Array:
        axis = _axis(x)
        size = x.shape[axis] // count
        x = x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    return jax.tree.map(split, tree)


def _joined(x: Float[Array, "N B G R T E"]) -> Float[Array, "B G R NT E"]:
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], -1, x.shape[-1])
