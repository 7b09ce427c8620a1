"""Selective scan: a diagonal state whose step, input and output follow the token (Mamba, Gu & Dao,
arXiv:2312.00752).

    h[t] = exp(dt[t] a) h[t-1] + dt[t] u[t] b[t];   y[t] = h[t] . c[t]

B rows, T tokens, C channels, S numbers of state per channel. No skip, no gate, no softplus inside.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.context import carried, cut_by
from ops.placement import P, batch_axes, by_device, choose, free_axes

CHUNK = 32  # tokens
_dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def selective_scan(
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "C S"],
    b: Float[Array, "B T S"],
    c: Float[Array, "B T S"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B C S"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B C S"]]:
    """y in the dtype of u, and the state after the last token in at least float32.

    dt > 0 and a < 0. `reset` is True where a document begins: there the state before it is gone.
    """
    (B, T, C), S = u.shape, a.shape[1]
    if dt.shape != u.shape or a.shape[0] != C or b.shape != (B, T, S) or c.shape != (B, T, S):
        shapes = f"u {u.shape}, dt {dt.shape}, a {a.shape}, b {b.shape}, c {c.shape}"
        raise ValueError(f"selective_scan: shapes {shapes} do not fit [B T C], [C S], [B T S]")
    wide = jnp.promote_types(u.dtype, jnp.float32)
    reset = jnp.zeros((B, T), bool) if reset is None else reset
    state = jnp.zeros((B, C, S), wide) if state is None else state.astype(wide)
    name = choose("selective_scan", implementation, dict.fromkeys(IMPLEMENTATIONS))
    return IMPLEMENTATIONS[name](u, dt, a, b, c, reset, state)


def reference(
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "C S"],
    b: Float[Array, "B T S"],
    c: Float[Array, "B T S"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B C S"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B C S"]]:
    """Token by token; the backward pass keeps every state."""
    wide = state.dtype

    def step(h: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        (u, dt, b, c), begins = (x.astype(wide) for x in now[:4]), now[4]
        h = jnp.where(begins[:, None, None], 0, h)
        h = jnp.exp(dt[..., None] * a.astype(wide)) * h + (dt * u)[..., None] * b[:, None]
        return h, jnp.sum(h * c[:, None], axis=-1)

    rows = tuple(jnp.moveaxis(x, 1, 0) for x in (u, dt, b, c, reset))
    state, y = jax.lax.scan(step, state, rows)
    return jnp.moveaxis(y, 0, 1).astype(u.dtype), state


def chunked(
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "C S"],
    b: Float[Array, "B T S"],
    c: Float[Array, "B T S"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B C S"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B C S"]]:
    """Token by token, keeping the states between chunks of tokens; the backward pass computes a
    chunk's own again. The channels are innermost: [B S C] is faster than [B C S]."""
    if not u.shape[1]:
        return u, state
    axes, size = batch_axes(u.shape[0]), free_axes().get("model", 1)
    model = "model" if size > 1 and u.shape[2] % size == 0 else None
    context = cut_by(u.shape[1])
    rows, columns = P(axes or None, context), P(axes or None, context, model)
    still = P(axes or None, None, model)
    run = by_device(
        _piece if context else _rows,
        (*axes, *filter(None, (context, model))),
        (columns, columns, P(None, model), rows, rows, rows, still),
        (columns, still),
    )
    y, h = run(u, dt, a.T.astype(state.dtype), b, c, reset, jnp.swapaxes(state, 1, 2))
    return y, jnp.swapaxes(h, 1, 2)


def _piece(
    u: Array, dt: Array, a: Array, b: Array, c: Array, reset: Array, h: Float[Array, "B S C"]
) -> tuple[Float[Array, "B T C"], Float[Array, "B S C"]]:
    """One device's tokens: as if nothing came before, then what did, which writes nothing."""
    y, last = _rows(u, dt, a, b, c, reset, jnp.zeros_like(h))
    through = jnp.exp(jnp.sum(dt.astype(h.dtype), axis=1)[:, None] * a)
    through = jnp.where(reset.any(axis=1)[:, None, None], 0, through)
    h, last = carried(h, last, through)
    more, _ = _rows(jnp.zeros_like(u), dt, a, b, c, reset, h)
    return y + more, last


def _rows(
    u: Array, dt: Array, a: Array, b: Array, c: Array, reset: Array, h: Float[Array, "B S C"]
) -> tuple[Float[Array, "B T C"], Float[Array, "B S C"]]:
    (B, T, _), count = u.shape, -(-u.shape[1] // CHUNK)
    size = -(-T // count)

    def split(x: Array) -> Array:  # [B T ..] -> [N Q B ..]; zeros complete the last chunk
        x = jnp.pad(x, [(0, 0), (0, count * size - T), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(B, count, size, *x.shape[2:]), 0, 2)

    y, h = _scan(Tokens(*map(split, (u, dt, b, c, reset))), a, h)
    return jnp.moveaxis(y, 2, 0).reshape(B, -1, y.shape[-1])[:, :T], h


class Tokens(NamedTuple):
    """Of one token, [B ..], or with axes of tokens and of chunks before."""

    u: Float[Array, "*rest B C"]
    dt: Float[Array, "*rest B C"]
    b: Float[Array, "*rest B S"]
    c: Float[Array, "*rest B S"]
    reset: Any  # [.. B] bool; its gradient is None


@jax.custom_vjp
def _scan(tokens: Tokens, a: Float[Array, "S C"], h: Float[Array, "B S C"]) -> tuple[Array, Array]:
    return _forward(tokens, a, h)[0]


def _forward(tokens: Tokens, a: Array, h: Array) -> tuple[tuple[Array, Array], tuple]:
    def step(h: Array, now: Tokens) -> tuple[Array, Array]:
        h = _next(h, now, a)
        return h, _dot("bsc,bs->bc", h, now.c.astype(h.dtype)).astype(now.u.dtype)

    def chunk(h: Array, part: Tokens) -> tuple[Array, tuple[Array, Array]]:
        last, y = jax.lax.scan(step, h, part)
        return last, (y, h)

    last, (y, borders) = jax.lax.scan(chunk, h, tokens)
    return (y, last), (tokens, a, borders)


def _backward(kept: tuple, grads: tuple[Array, Array]) -> tuple[Tokens, Array, Array]:
    tokens, a, borders = kept

    def step(sums: tuple[Array, Array], now: tuple) -> tuple[tuple[Array, Array], tuple]:
        (dh, da), (token, before, dy) = sums, now
        u, dt, b, c = (x.astype(dh.dtype) for x in token[:4])
        dy, decay, x = dy.astype(dh.dtype), jnp.exp(dt[:, None] * a), dt * u
        h = decay * before + x[:, None] * b[..., None]
        dh = dh + c[..., None] * dy[:, None]
        dlog = dh * decay * before
        dx = _dot("bsc,bs->bc", dh, b)
        # One fused loop: XLA:CPU takes twice as long for a reduction here.
        d_dt = sum((dlog[:, s] * a[s] for s in range(a.shape[0])), dx * u)
        d_b, d_c = _dot("bsc,bc->bs", dh, x), _dot("bsc,bc->bs", h, dy)
        dh = jnp.where(token.reset[:, None, None], 0, decay * dh)
        return (dh, da + dlog * dt[:, None]), (dx * dt, d_dt, d_b, d_c)

    def chunk(sums: tuple[Array, Array], part: tuple) -> tuple[tuple[Array, Array], tuple]:
        tokens, border, dy = part
        _, before = jax.lax.scan(lambda h, now: (_next(h, now, a), _kept(h, now)), border, tokens)
        return jax.lax.scan(step, sums, (tokens, before, dy), reverse=True)

    dy, dh = grads
    sums = (dh, jnp.zeros_like(dh))
    (dh, da), d = jax.lax.scan(chunk, sums, (tokens, borders, dy), reverse=True)
    d = jax.tree.map(lambda d, x: d.astype(x.dtype), d, tokens[:4])
    return Tokens(*d, reset=None), da.sum(0), dh


_scan.defvjp(_forward, _backward)


def _kept(h: Float[Array, "B S C"], now: Tokens) -> Float[Array, "B S C"]:
    return jnp.where(now.reset[:, None, None], 0, h)


def _next(h: Float[Array, "B S C"], now: Tokens, a: Float[Array, "S C"]) -> Float[Array, "B S C"]:
    u, dt, b = (x.astype(h.dtype) for x in now[:3])
    return jnp.exp(dt[:, None] * a) * _kept(h, now) + (dt * u)[:, None] * b[..., None]


IMPLEMENTATIONS = {"reference": reference, "xla": chunked}
