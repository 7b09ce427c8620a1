"""Scaled dot-product attention with grouped keys, documents, windows and biases (arXiv:1706.03762).

    scores = cap(scale * q.k) + bias;   o = softmax(scores over the visible keys) v

A query that sees no key gives 0, with gradient 0. With sinks (gpt-oss), the softmax also runs over
one score per head that has no value. B rows, T queries, S keys, H query heads, G key
heads that each serve `rep` = H / G query heads, K width of keys, Kv width of values.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.attention.chunked import chunked
from ops.attention.kernels import cudnn, cudnn_unsupported_reason, splash, splash_unsupported_reason
from ops.attention.mask import AttentionSpec, BiasFn, TokenIndex
from ops.attention.ring import MIN_TOKENS, ring
from ops.context_parallel import all_gather_tokens, context_axis
from ops.implementation import PS, batch_axes, map_shards, platform, select_implementation

__all__ = ["BiasFn", "TokenIndex", "attention", "reference"]


def attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G Kv"],
    queries: TokenIndex,
    keys: TokenIndex,
    *,
    causal: bool,
    window: tuple[int, int] | None = None,
    scale: float,
    softcap: float = 0.0,
    bias: BiasFn | None = None,
    aligned: bool = True,
    dropout: float = 0.0,
    key: Array | None = None,
    sinks: Float[Array, " H"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T H Kv"]:
    """Returns the attention outputs of the queries, in the dtype of q.

    Query head h reads key head h // (H / G). Key j is visible to query i if and only if

    - their segments are equal and not 0, and
    - `causal` is False, or order[j] <= order[i], or is_prefix[j], and
    - `window` is None, or order[i] - left <= order[j] <= order[i] + right for (left, right), and
    - the indices have no `blocks`, or j is in the block of i or in one that i selects.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        queries: Order and documents of the query tokens, their decay and blocks, if any.
        keys: The same of the key tokens.
        causal: Whether a query sees only keys up to its own position, and prefixes.
        window: Number of positions before and after its own that a query sees; None: all.
        scale: Factor of the products q.k.
        softcap: A value c > 0 replaces the scores by c tanh(scores / c).
        bias: `bias(queries, keys)` returns [B or 1, H, T, S] for any part of the rows; if its
            parameters need gradients, it is a `jax.tree_util.Partial` that holds them as leaves.
        aligned: Promises that queries and keys are one row in which the tokens of a segment are
            adjacent and in order. Keys that are too far away in the arrays are then skipped.
        dropout: Probability that an attention weight is set to 0.
        key: Random key of the dropout; None: no dropout.
        sinks: Score of each head's sink, which is neither scaled nor capped; None: no sinks.
        implementation: Name of an implementation, or "ring": where devices hold parts of a row,
            keys and values go around. None chooses by platform, and the ring for long rows.

    Raises:
        ValueError: if shapes do not fit.
        ConfigError: if the implementation is unknown or cannot run here.
    """
    (B, T, H, K), (S, G) = q.shape, k.shape[1:3]
    if k.shape != (B, S, G, K) or v.shape[:3] != (B, S, G) or H % G:
        raise ValueError(f"attention: shapes q {q.shape}, k {k.shape}, v {v.shape} do not fit")
    if aligned and T != S:
        raise ValueError(f"attention: {T} queries and {S} keys are not one row; set aligned=False")
    if not T or not S:
        return jnp.zeros((B, T, H, v.shape[3]), q.dtype)
    rate = 0.0 if key is None else dropout
    spec = AttentionSpec(causal, window, scale, softcap, bias, aligned, rate, key, sinks)
    # Dropout is drawn for whole rows, so their tokens are not split over devices.
    context = None if spec.dropout else context_axis(T, S)
    if not context:
        requested = None if implementation == "ring" else implementation  # one device has the row
        return _run_implementation(q, k, v, queries, keys, spec, requested)
    return _attend_over_context(q, k, v, queries, keys, spec, implementation, context)


def _attend_over_context(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G Kv"],
    queries: TokenIndex,
    keys: TokenIndex,
    spec: AttentionSpec,
    requested: str | None,
    context: str,
) -> Float[Array, "B T H Kv"]:
    """Attends on each device from its part of the queries to all keys of their rows.

    Devices pass their keys around in a ring, or each gathers all of them. `context` is the mesh
    axis over which the tokens of a row are split.
    """
    reasons = dict.fromkeys(IMPLEMENTATIONS) | {"ring": spec.reason_not_plain(keys)}
    preferred = ("ring",) if k.shape[1] >= MIN_TOKENS else ()
    uses_ring = select_implementation("attention", requested, reasons, preferred) == "ring"

    def attend(
        q: Array,
        k: Array,
        v: Array,
        queries: TokenIndex,
        keys: TokenIndex,
        bias: BiasFn | None,
        sinks: Array | None,
    ) -> Array:
        if uses_ring:
            return ring(q, k, v, queries, keys, spec)
        local_spec = dataclasses.replace(spec, aligned=False, bias=bias, sinks=sinks)
        k, v, keys = all_gather_tokens((k, v, keys))
        return _run_implementation(q, k, v, queries, keys, local_spec, requested)

    # The arrays of a bias are arguments of `attend`, which has its part of them on each device.
    bias = spec.bias
    if bias is not None and not isinstance(bias, jax.tree_util.Partial):
        bias = jax.tree_util.Partial(bias)
    axes = batch_axes(q.shape[0])
    token_spec = PS(axes or None, context)
    run = map_shards(attend, (*axes, context), (*(token_spec,) * 5, PS(), PS()), token_spec)
    return run(q, k, v, queries, keys, bias, spec.sinks)


def _run_implementation(
    q: Array,
    k: Array,
    v: Array,
    queries: TokenIndex,
    keys: TokenIndex,
    spec: AttentionSpec,
    requested: str | None,
) -> Float[Array, "B T H Kv"]:
    """Runs the requested implementation, or the best one that can run."""
    reasons = {name: why(q, k, v, keys, spec) for name, (_, why) in IMPLEMENTATIONS.items()}
    name = select_implementation("attention", requested, reasons, PREFERRED.get(platform(), ()))
    return IMPLEMENTATIONS[name][0](q, k, v, queries, keys, spec)


def reference(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G Kv"],
    queries: TokenIndex,
    keys: TokenIndex,
    spec: AttentionSpec,
) -> Float[Array, "B T H Kv"]:
    """Computes attention from all T x S scores at once."""
    (B, T, H, K), G = q.shape, k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q, k, v = q.reshape(B, T, G, H // G, K), k.astype(q.dtype), v.astype(q.dtype)
    products = jnp.einsum("btgrk,bsgk->bgrts", q, k, preferred_element_type=wide)
    scores = spec.adjust_scores(products, queries.heads_first(), keys.heads_first())
    sinks = spec.head_sinks(wide, G, H // G)
    if sinks is not None:
        sink_scores = jnp.broadcast_to(sinks, (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, sink_scores], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1, where=scores > -jnp.inf)[..., : k.shape[1]]
    weights = spec.apply_dropout(weights, 0).astype(q.dtype)
    o = jnp.einsum("bgrts,bsgv->btgrv", weights, v, preferred_element_type=wide)
    return o.astype(q.dtype).reshape(B, T, H, -1)


def always_supported(q: Array, k: Array, v: Array, keys: TokenIndex, spec: AttentionSpec) -> None:
    """Returns None: an implementation in plain XLA has no case that it cannot run."""


IMPLEMENTATIONS = {  # name: function, and a function that returns why it cannot run or None
    "reference": (reference, always_supported),
    "xla": (chunked, always_supported),
    "cudnn": (cudnn, cudnn_unsupported_reason),
    "splash": (splash, splash_unsupported_reason),
}
PREFERRED = {"gpu": ("cudnn",), "tpu": ("splash",)}  # by platform; if they cannot run, "xla" does
