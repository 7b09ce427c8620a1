"""Scaled dot-product attention with grouped keys, documents, windows and biases (arXiv:1706.03762).

    scores = cap(scale * q.k) + bias;   o = softmax(scores over the visible keys) v

A query that sees no key gives 0, with gradient 0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.attention_chunked import chunked
from ops.attention_kernels import cudnn, cudnn_reason, splash, splash_reason
from ops.attention_mask import Rule, Tokens
from ops.context import cut_by, gathered
from ops.placement import P, batch_axes, by_device, choose, platform

__all__ = ["Tokens", "attention", "reference"]


def attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G E"],
    queries: Tokens,
    keys: Tokens,
    *,
    causal: bool,
    window: tuple[int, int] | None = None,
    scale: float,
    softcap: float = 0.0,
    bias: Callable[[Tokens, Tokens], Float[Array, "..."]] | None = None,
    aligned: bool = True,
    dropout: float = 0.0,
    key: Array | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T H E"]:
    """Query head h reads key head h // (H / G). Key j is visible to query i iff

    - their segments are equal and not 0, and
    - not `causal`, or order[j] <= order[i], or prefix[j], and
    - no `window` (left, right), or order[i] - left <= order[j] <= order[i] + right.

    `softcap` c > 0 makes scores c * tanh(scores / c). `bias(queries, keys)` gives [B or 1, H, T, S]
    for any piece of the rows; its parameters are leaves of a `jax.tree_util.Partial`. `aligned`
    promises that queries and keys are one row in which a segment's tokens stand side by side, in
    order: then what is far away in the arrays is skipped. `dropout` acts on the weights; without a
    `key` there is none.
    """
    (B, T, H, K), (S, G) = q.shape, k.shape[1:3]
    if k.shape != (B, S, G, K) or v.shape[:3] != (B, S, G) or H % G:
        raise ValueError(f"attention: shapes q {q.shape}, k {k.shape}, v {v.shape} do not fit")
    if aligned and T != S:
        raise ValueError(f"attention: {T} queries and {S} keys are not one row; say aligned=False")
    if not T or not S:
        return jnp.zeros((B, T, H, v.shape[3]), q.dtype)
    rule = Rule(causal, window, scale, softcap, bias, aligned, 0.0 if key is None else dropout, key)
    context = None if rule.dropout else cut_by(T, S)  # dropout is drawn for whole rows
    if not context:
        return _run(q, k, v, queries, keys, rule, implementation)
    if bias is not None and not isinstance(bias, jax.tree_util.Partial):
        bias = jax.tree_util.Partial(bias)

    def piece(q: Array, k: Array, v: Array, queries: Tokens, keys: Tokens, bias: Any) -> Array:
        own = dataclasses.replace(rule, aligned=False, bias=bias)
        k, v, keys = gathered((k, v, keys))
        return _run(q, k, v, queries, keys, own, implementation)

    axes = batch_axes(B)
    rows = P(axes or None, context)
    run = by_device(piece, (*axes, context), (*(rows,) * 5, P()), rows)
    return run(q, k, v, queries, keys, bias)


def _run(
    q: Array, k: Array, v: Array, queries: Tokens, keys: Tokens, rule: Rule, asked: str | None
) -> Float[Array, "B T H E"]:
    """By the implementation asked for, or the best that can run."""
    reasons = {name: why(q, k, v, keys, rule) for name, (_, why) in IMPLEMENTATIONS.items()}
    name = choose("attention", asked, reasons, BEST.get(platform(), ()))
    return IMPLEMENTATIONS[name][0](q, k, v, queries, keys, rule)


def reference(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G E"],
    queries: Tokens,
    keys: Tokens,
    rule: Rule,
) -> Float[Array, "B T H E"]:
    """All T x S scores at once."""
    (B, T, H, K), G = q.shape, k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q, k, v = q.reshape(B, T, G, H // G, K), k.astype(q.dtype), v.astype(q.dtype)
    products = jnp.einsum("btgrk,bsgk->bgrts", q, k, preferred_element_type=wide)
    scores = rule.adjusted(products, queries, keys)
    weights = jax.nn.softmax(scores, axis=-1, where=scores > -jnp.inf)
    weights = rule.dropped(weights, 0).astype(q.dtype)
    o = jnp.einsum("bgrts,bsge->btgre", weights, v, preferred_element_type=wide)
    return o.astype(q.dtype).reshape(B, T, H, -1)


def anywhere(q: Array, k: Array, v: Array, keys: Tokens, rule: Rule) -> None:
    """No reason not to run."""


IMPLEMENTATIONS = {  # name: function, why it cannot run (None if it can)
    "reference": (reference, anywhere),
    "xla": (chunked, anywhere),
    "cudnn": (cudnn, cudnn_reason),
    "splash": (splash, splash_reason),
}
BEST = {"gpu": ("cudnn",), "tpu": ("splash",)}  # by platform, where they can run; else xla
