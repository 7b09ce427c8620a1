"""Cross-entropy fused with the head: logits exist for a chunk of tokens at a time.

    logits = cap(scale * hidden @ table.T + bias);   nats = logsumexp(logits) - logits[target]

The backward pass computes each chunk's logits again (Wijmans et al., arXiv:2411.09009), unless one
chunk holds them all. Left out on purpose: skipping small gradients, which changes the result.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops.context import cut_by
from ops.placement import P, batch_axes, by_device, choose, free_axes

TOKENS = 1024  # of a chunk on a device: fewer would mostly add up gradients of the table
LOGITS = 2**24  # of a chunk on a device, where that is more tokens


class CrossEntropy(NamedTuple):
    nats: Float[Array, "B T"]
    lse: Float[Array, "B T"]  # logsumexp of the logits
    correct: Bool[Array, "B T"]  # the target is the first of the highest logits


class Head(NamedTuple):
    """What the logits are besides `hidden @ table.T`; all static."""

    vocab: int  # columns from here on are padding
    scale: float
    cap: float


def cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    *,
    bias: Float[Array, " V"] | None = None,
    vocab: int,
    scale: float = 1.0,
    cap: float = 0.0,
    implementation: str | None = None,
) -> CrossEntropy:
    """Nats of `targets`, in at least float32; the matrix products run in the dtype of `hidden`.

    Columns from `vocab` on are not predicted, and their rows of `table` get no gradient. `cap > 0`
    makes logits `cap * tanh(logits / cap)`. `nats` and `lse` are differentiable.
    """
    if not 0 < vocab <= table.shape[0]:
        raise ValueError(f"vocab {vocab} must be 1 .. {table.shape[0]}, the rows of the table")
    name = choose("cross_entropy", implementation, dict.fromkeys(IMPLEMENTATIONS))
    return IMPLEMENTATIONS[name](hidden, targets, table, bias, Head(vocab, scale, cap))


def reference(
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    table: Float[Array, "V D"],
    bias: Float[Array, " V"] | None,
    head: Head,
) -> CrossEntropy:
    """All logits at once."""
    logits = _logits(hidden, table.astype(hidden.dtype), bias, head)
    lse = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return CrossEntropy(lse - target, lse, jnp.argmax(logits, axis=-1) == targets)


def chunked(
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    table: Float[Array, "V D"],
    bias: Float[Array, " V"] | None,
    head: Head,
) -> CrossEntropy:
    """Chunks along T. Each device sums its rows' gradient of `table` before devices sum theirs."""
    axes, context = batch_axes(hidden.shape[0]), cut_by(hidden.shape[1])
    rows, whole = P(axes or None, context), P()
    axes = (*axes, context) if context else axes
    run = by_device(functools.partial(_fused, head), axes, (rows, rows, whole, whole), rows)
    return run(hidden, targets, table, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(head: Head, hidden: Array, targets: Array, table: Array, bias: Any) -> CrossEntropy:
    return _forward(head, hidden, targets, table, bias)[0]


def _forward(
    head: Head, hidden: Array, targets: Array, table: Array, bias: Any
) -> tuple[CrossEntropy, tuple]:
    count, cast = _count(hidden, table), table.astype(hidden.dtype)
    if count == 1:
        logits = _logits(hidden, cast, bias, head)
        out = _summary(logits, targets)
        return out, (hidden, targets, table, bias, out.lse, logits)
    parts = jax.lax.map(
        lambda part: _summary(_logits(part[0], cast, bias, head), part[1]),
        (_split(hidden, count), _split(targets, count)),
    )
    out = jax.tree.map(lambda x: _join(x, hidden.shape[1]), parts)
    return out, (hidden, targets, table, bias, out.lse, None)


def _backward(head: Head, kept: tuple, grads: CrossEntropy) -> tuple:
    hidden, targets, table, bias, lse, logits = kept
    count, cast = _count(hidden, table), table.astype(hidden.dtype)
    part = (hidden, targets, lse, grads.nats, grads.lse)
    if logits is not None:
        d_hidden, d_head = _gradient(logits, part, cast, bias, head)
    else:

        def step(sums: tuple, part: tuple) -> tuple[tuple, Array]:
            logits = _logits(part[0], cast, bias, head)
            d_hidden, d_head = _gradient(logits, part, cast, bias, head)
            return jax.tree.map(jnp.add, sums, d_head), d_hidden

        fills = (0, 0, jnp.inf, 0, 0)  # an lse of inf: weights of 0
        parts = tuple(_split(x, count, fill) for x, fill in zip(part, fills, strict=True))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, lse.dtype), (table, bias))
        d_head, d_parts = jax.lax.scan(step, zeros, parts)
        d_hidden = _join(d_parts, hidden.shape[1])
    d_table, d_bias = jax.tree.map(lambda d, x: d.astype(x.dtype), d_head, (table, bias))
    return d_hidden, None, d_table, d_bias


_fused.defvjp(_forward, _backward)


def _logits(hidden: Array, table: Array, bias: Any, head: Head) -> Float[Array, "B T V"]:
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=wide) * head.scale
    if bias is not None:
        logits = logits + bias.astype(wide)
    if head.cap:
        logits = head.cap * jnp.tanh(logits / head.cap)
    return jnp.where(_columns(logits) < head.vocab, logits, -jnp.inf)


def _summary(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> CrossEntropy:
    top = jnp.max(logits, axis=-1, keepdims=True)
    lse = (top + jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)))[..., 0]
    targets = targets[..., None]
    target = jnp.take_along_axis(logits, targets, axis=-1)
    tie = (logits == target) & (_columns(logits) < targets)
    beaten = jnp.any((logits > target) | tie, axis=-1)  # cheaper than argmax
    return CrossEntropy(lse - target[..., 0], lse, ~beaten)


def _gradient(
    logits: Array, part: tuple, table: Array, bias: Any, head: Head
) -> tuple[Array, tuple[Array, Array | None]]:
    """Of one chunk: d hidden, (d table, d bias)."""
    targets, lse, d_nats, d_lse = (x[..., None] for x in part[1:])
    columns, hidden = _columns(logits), part[0]
    d = jnp.exp(logits - lse) * (d_nats + d_lse) - jnp.where(columns == targets, d_nats, 0)
    if head.cap:
        d = jnp.where(columns < head.vocab, d * (1 - jnp.square(logits / head.cap)), 0)
    d_bias = None if bias is None else jnp.sum(d, axis=(0, 1))
    d = (d * head.scale).astype(hidden.dtype)
    d_hidden = jnp.einsum("btv,vd->btd", d, table, preferred_element_type=lse.dtype)
    d_table = jnp.einsum("btv,btd->vd", d, hidden, preferred_element_type=lse.dtype)
    return d_hidden.astype(hidden.dtype), (d_table, d_bias)


def _columns(logits: Float[Array, "B T V"]) -> Int[Array, "1 1 V"]:
    return jax.lax.broadcasted_iota(jnp.int32, (1, 1, logits.shape[-1]), 2)


def _count(hidden: Float[Array, "B T D"], table: Float[Array, "V D"]) -> int:
    """How many chunks along T."""
    (B, T, _), sizes = hidden.shape, free_axes()
    tokens, columns = B * T / sizes.get("context", 1), table.shape[0] / sizes.get("model", 1)
    return max(1, min(T, math.ceil(tokens / max(TOKENS, LOGITS / columns))))


def _split(x: Array, count: int, fill: float = 0) -> Array:
    """[B T ..] -> [count B T/count ..]; `fill` completes the last chunk."""
    B, T, *rest = x.shape
    size = -(-T // count)
    x = jnp.pad(x, [(0, 0), (0, count * size - T), *[(0, 0)] * len(rest)], constant_values=fill)
    return jnp.moveaxis(x.reshape(B, count, size, *rest), 1, 0)


def _join(x: Array, length: int) -> Array:
    """The inverse of `_split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


IMPLEMENTATIONS = {"reference": reference, "xla": chunked}
