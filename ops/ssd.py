"""State space duality: a matrix state per head with one decay per head (Mamba-2, Dao & Gu,
arXiv:2405.21060).

    h[t] = exp(dt[t] a) h[t-1] + dt[t] x[t] (x) b[t];   y[t] = h[t] c[t]

B rows, T tokens, H heads of width P, G groups of heads that share b and c, N numbers of state.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.chunks import (
    Decays,
    by_head,
    decays,
    forgetting,
    halved,
    join,
    product,
    sizes,
    split,
    total,
)
from ops.context import carried, cut_by
from ops.placement import P, batch_axes, by_device, choose


def ssd(
    x: Float[Array, "B T H P"],
    dt: Float[Array, "B T H"],
    a: Float[Array, " H"],
    b: Float[Array, "B T G N"],
    c: Float[Array, "B T G N"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H P N"] | None = None,
    chunk: int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H P"], Float[Array, "B H P N"]]:
    """y in the dtype of x, and the state after the last token in at least float32.

    dt > 0 and a < 0; head i uses group i // (H / G). `reset` is True where a document begins: there
    the state before it is gone. `chunk` bounds the tokens of a chunk (by default by platform).
    """
    (B, T, H, W), (G, N) = x.shape, b.shape[2:]
    if dt.shape != (B, T, H) or a.shape != (H,) or b.shape != c.shape or b.shape[:2] != (B, T):
        shapes = f"x {x.shape}, dt {dt.shape}, a {a.shape}, b {b.shape}, c {c.shape}"
        raise ValueError(f"ssd: shapes {shapes} do not fit [B T H P], [B T H], [H], [B T G N]")
    if H % G:
        raise ValueError(f"ssd: {H} heads do not divide into {G} groups; take a divisor of {H}")
    wide = jnp.promote_types(x.dtype, jnp.float32)
    reset = jnp.zeros((B, T), bool) if reset is None else reset
    state = jnp.zeros((B, H, W, N), wide) if state is None else state.astype(wide)
    name = choose("ssd", implementation, dict.fromkeys(IMPLEMENTATIONS))
    return IMPLEMENTATIONS[name](x, dt, a, b, c, reset, state, chunk)


def reference(
    x: Float[Array, "B T H P"],
    dt: Float[Array, "B T H"],
    a: Float[Array, " H"],
    b: Float[Array, "B T G N"],
    c: Float[Array, "B T G N"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B H P N"],
    chunk: int | None,
) -> tuple[Float[Array, "B T H P"], Float[Array, "B H P N"]]:
    """Token by token."""
    wide, heads = state.dtype, x.shape[2] // b.shape[2]

    def step(h: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        (x, dt, b, c), begins = (z.astype(wide) for z in now[:4]), now[4]
        b, c = (jnp.repeat(z, heads, axis=1) for z in (b, c))
        h = jnp.where(begins[:, None, None, None], 0, h)
        h = jnp.exp(dt * a.astype(wide))[..., None, None] * h
        h = h + (dt[..., None] * x)[..., None] * b[..., None, :]
        return h, jnp.sum(h * c[..., None, :], axis=-1)

    rows = tuple(jnp.moveaxis(z, 1, 0) for z in (x, dt, b, c, reset))
    state, y = jax.lax.scan(step, state, rows)
    return jnp.moveaxis(y, 0, 1).astype(x.dtype), state


def chunked(
    x: Float[Array, "B T H P"],
    dt: Float[Array, "B T H"],
    a: Float[Array, " H"],
    b: Float[Array, "B T G N"],
    c: Float[Array, "B T G N"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B H P N"],
    chunk: int | None,
) -> tuple[Float[Array, "B T H P"], Float[Array, "B H P N"]]:
    """Chunk after chunk; the backward pass keeps the states in between and computes again."""
    axes, context = batch_axes(x.shape[0]), cut_by(x.shape[1])
    rows, whole, still = P(axes or None, context), P(), P(axes or None)
    run = by_device(
        functools.partial(_piece if context else _scan, chunk),
        (*axes, context) if context else axes,
        (rows, rows, whole, rows, rows, rows, still),
        (rows, still),
    )
    return run(x, dt, a, b, c, reset, state)


def _piece(
    chunk: int | None, x: Array, dt: Array, a: Array, b: Array, c: Array, reset: Array, state: Array
) -> tuple[Array, Array]:
    """One device's tokens: as if nothing came before, then what did."""
    y, last = _scan(chunk, x, dt, a, b, c, reset, jnp.zeros_like(state))
    g = forgetting(dt.astype(state.dtype) * a.astype(state.dtype), reset)
    left = jnp.exp(jnp.cumsum(g, axis=1))  # of a state from before, at the end of each token
    state, last = carried(state, last, left[:, -1, :, None, None])
    dot = product(x.dtype, state.dtype)
    seen = state.reshape(state.shape[0], b.shape[2], -1, *state.shape[2:])
    more = dot("btgn,bgrpn->btgrp", c, seen).reshape(x.shape)
    return (y + left[..., None] * more).astype(x.dtype), last


def _scan(
    chunk: int | None, x: Array, dt: Array, a: Array, b: Array, c: Array, reset: Array, state: Array
) -> tuple[Array, Array]:
    T, wide = x.shape[1], state.dtype
    if not T:
        return x, state
    dt = dt.astype(wide)
    rows = (x, dt, forgetting(dt * a.astype(wide), reset), b, c)
    parts = Chunk(*(split(z, *sizes(T, chunk)) for z in rows))
    y, h = _chunks(parts, jnp.swapaxes(state, 2, 3))
    return join(y, T), jnp.swapaxes(h, 2, 3)


class Chunk(NamedTuple):
    """Q tokens, as they come or `by_head`; there may be an axis of chunks before."""

    x: Float[Array, "*rest B Q H P"]
    dt: Float[Array, "*rest B Q H"]
    g: Float[Array, "*rest B Q H"]
    b: Float[Array, "*rest B Q G N"]
    c: Float[Array, "*rest B Q G N"]


@jax.custom_vjp
def _chunks(parts: Chunk, h: Float[Array, "B H N P"]) -> tuple[Array, Array]:
    """y [.. B Q H P] and the last state. Kept for the backward pass are the states in between; by
    hand it takes a third of the time of what autodiff makes of a checkpointed `step`."""
    return _forward(parts, h)[0]


def _forward(parts: Chunk, h: Array) -> tuple[tuple[Array, Array], tuple]:
    dot, heads = product(parts.x.dtype, h.dtype), _of_heads(parts)

    def step(h: Array, part: Chunk) -> tuple[Array, tuple[Array, Array]]:
        x, dt, g, b, c = by_head(part)
        left = decays(g)
        scores = heads(dot("bgin,bgjn->bgij", c, b))
        y = dot("bhij,bhjp->bhip", scores * _written(left, dt), x)
        y = y + left.into[..., None] * dot("bhin,bhnp->bhip", heads(c), h)
        told = (left.out * dt)[..., None] * x
        new = left.through[..., None, None] * h + dot("bhjn,bhjp->bhnp", heads(b), told)
        return new, (by_head(y.astype(x.dtype)), h)

    last, (y, borders) = jax.lax.scan(step, h, parts)
    return (y, last), (parts, borders)


def _backward(kept: tuple, grads: tuple[Array, Array]) -> tuple[Chunk, Array]:
    parts, borders = kept
    dot, heads, G = product(parts.x.dtype, borders.dtype), _of_heads(parts), parts.b.shape[3]

    def groups(z: Float[Array, "B H Q N"]) -> Float[Array, "B G Q N"]:
        return halved(z.reshape(z.shape[0], G, -1, *z.shape[2:]))

    def step(dh: Array, now: tuple) -> tuple[Array, Chunk]:
        (x, dt, g, b, c), h, dy = by_head(now[0]), now[1], by_head(now[2])
        left, pull = jax.vjp(decays, g)
        gain, wrote = left.out * dt, _written(left, dt)
        scores = heads(dot("bgin,bgjn->bgij", c, b))
        # y = (scores * wrote) x + into (c h)
        d_within = dot("bhip,bhjp->bhij", dy, x)
        d_scores, d_wrote = groups(d_within * wrote), d_within * scores
        heard, told = left.into[..., None] * dy, gain[..., None] * x
        d_c = dot("bgij,bgjn->bgin", d_scores, b) + groups(dot("bhip,bhnp->bhin", heard, h))
        d_b = dot("bgij,bgin->bgjn", d_scores, c) + groups(dot("bhjp,bhnp->bhjn", told, dh))
        d_into = total(dy * dot("bhin,bhnp->bhip", heads(c), h))
        # the next state = through h + b (gain x)
        back = dot("bhjn,bhnp->bhjp", heads(b), dh)
        d_gain, d_through = total(x * back), jnp.sum(total(h * dh), axis=-1)
        d_x = dot("bhij,bhip->bhjp", scores * wrote, dy) + gain[..., None] * back
        d_dt = total(d_wrote * left.within, -2) + d_gain * left.out
        slopes = Decays(d_wrote * dt[..., None, :], d_into, d_gain * dt, d_through)
        dh = left.through[..., None, None] * dh + dot("bhin,bhip->bhnp", heads(c), heard)
        return dh, by_head(Chunk(d_x, d_dt, pull(slopes)[0], d_b, d_c))

    dy, dh = grads
    dh, d = jax.lax.scan(step, dh, (parts, borders, dy.astype(borders.dtype)), reverse=True)
    return jax.tree.map(lambda z, like: z.astype(like.dtype), d, parts), dh


_chunks.defvjp(_forward, _backward)


def _of_heads(parts: Chunk) -> Callable[[Float[Array, "B G Q N"]], Float[Array, "B H Q N"]]:
    """What a group has, once more for each of its heads: products by head copy nothing wide."""
    return functools.partial(jnp.repeat, repeats=parts.x.shape[3] // parts.b.shape[3], axis=1)


def _written(left: Decays, dt: Float[Array, "B H Q"]) -> Float[Array, "B H Q Q"]:
    """What is left at token i of the step of token j."""
    return left.within * dt[..., None, :]


IMPLEMENTATIONS = {"reference": reference, "xla": chunked}
