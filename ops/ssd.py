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
    blocks,
    decays,
    forgetting,
    halved,
    join,
    product,
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
    """Blocks of chunks, one after the other; the backward pass keeps the states in between and
    computes again."""
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
    (B, T, H, W), (G, N), wide = x.shape, b.shape[2:], state.dtype
    if not T:
        return x, state
    dt = dt.astype(wide)
    rows = (x, dt, forgetting(dt * a.astype(wide), reset), b, c)
    state = jnp.moveaxis(state.reshape(B, G, -1, N), 2, 3)
    y, h = _blocks(blocks(Block(*rows), H, chunk), state)
    return join(y, T), jnp.moveaxis(h, 2, 3).reshape(B, H, W, N)


class Block(NamedTuple):
    """M chunks of Q tokens; there may be an axis of blocks before."""

    x: Float[Array, "*rest B M Q H P"]
    dt: Float[Array, "*rest B M Q H"]
    g: Float[Array, "*rest B M Q H"]
    b: Float[Array, "*rest B M Q G N"]
    c: Float[Array, "*rest B M Q G N"]


class Inside(NamedTuple):
    """What both passes compute of a block. Of a group g, Z numbers are its R heads side by side."""

    b: Float[Array, "B M G Q N"]
    c: Float[Array, "B M G Q N"]
    left: Decays  # of [B M G R Q]
    wrote: Float[Array, "B M G R Q Q"]  # what is left at token i of the step of token j
    scores: Float[Array, "B M G 1 Q Q"]
    gain: Float[Array, "B M Q H 1"]  # what is left of a token's step at the end of its chunk
    told: Float[Array, "B M G Q Z"]  # a token's step, as its chunk's last state has it
    states: Float[Array, "B M G N Z"]  # before each chunk
    last: Float[Array, "B G N Z"]


@jax.custom_vjp
def _blocks(parts: Block, h: Float[Array, "B G N Z"]) -> tuple[Array, Array]:
    """y [.. B M Q H P] and the last state. Kept for the backward pass are the states between
    blocks; by hand it takes a third of the time of what autodiff makes of a checkpointed `step`."""
    return _forward(parts, h)[0]


def _forward(parts: Block, h: Array) -> tuple[tuple[Array, Array], tuple]:
    dot = product(parts.x.dtype, h.dtype)

    def step(h: Array, part: Block) -> tuple[Array, tuple[Array, Array]]:
        it = _inside(part, h, decays(_by_head(part.g, part)), dot)
        y = dot("bmgrij,bmgrjp->bmgrip", it.scores * it.wrote, _by_head(part.x, part))
        seen = _apart(dot("bmgin,bmgnz->bmgiz", it.c, it.states), part)
        y = _by_token(y) + _by_token(it.left.into)[..., None] * seen
        return it.last, (y.astype(part.x.dtype), h)

    last, (y, borders) = jax.lax.scan(step, h, parts)
    return (y, last), (parts, borders)


def _backward(kept: tuple, grads: tuple[Array, Array]) -> tuple[Block, Array]:
    parts, borders = kept
    dot = product(parts.x.dtype, borders.dtype)

    def step(dh: Array, now: tuple[Block, Array, Array]) -> tuple[Array, Block]:
        part, h, dy = now
        left, pull = jax.vjp(decays, _by_head(part.g, part))
        it = _inside(part, h, left, dot)
        x, d = _by_head(part.x, part), _by_head(dy, part)
        # y = (scores * wrote) x + into (c states)
        d_within = dot("bmgrip,bmgrjp->bmgrij", d, x)
        d_scores, d_wrote = halved(d_within * it.wrote), d_within * it.scores
        heard = _merged(_by_token(left.into)[..., None] * dy, part)
        dh, d_states = _between(left, dot("bmgin,bmgiz->bmgnz", it.c, heard), dh, reverse=True)
        seen = _apart(dot("bmgin,bmgnz->bmgiz", it.c, it.states), part)
        d_c = dot("bmgij,bmgjn->bmgin", d_scores, it.b)
        d_c = d_c + dot("bmgiz,bmgnz->bmgin", heard, it.states)
        # the next state = through states + b told
        back = _apart(dot("bmgjn,bmgnz->bmgjz", it.b, d_states), part)
        d_b = dot("bmgij,bmgin->bmgjn", d_scores, it.c)
        d_b = d_b + dot("bmgjz,bmgnz->bmgjn", it.told, d_states)
        d_x = _by_token(dot("bmgrij,bmgrip->bmgrjp", it.scores * it.wrote, d)) + it.gain * back
        d_gain = _by_head(total(part.x * back), part)
        d_dt = total(d_wrote * left.within, -2) + d_gain * left.out
        dt, kept = _by_head(part.dt, part), it.states * d_states
        d_through = jnp.sum(total(kept.reshape(*kept.shape[:4], left.into.shape[3], -1)), axis=3)
        d_into = _by_head(total(dy * seen), part)
        d_g = pull(Decays(d_wrote * dt[..., None, :], d_into, d_gain * dt, d_through))[0]
        d_bc = (jnp.swapaxes(z, 2, 3) for z in (d_b, d_c))
        return dh, Block(d_x, _by_token(d_dt), _by_token(d_g), *d_bc)

    dy, dh = grads
    dh, d = jax.lax.scan(step, dh, (parts, borders, dy.astype(borders.dtype)), reverse=True)
    return jax.tree.map(lambda z, like: z.astype(like.dtype), d, parts), dh


_blocks.defvjp(_forward, _backward)


def _inside(part: Block, h: Array, left: Decays, dot: Callable[..., Array]) -> Inside:
    b, c = (jnp.swapaxes(z, 2, 3) for z in (part.b, part.c))
    scores = dot("bmgin,bmgjn->bmgij", c, b)[:, :, :, None]
    gain = (_by_token(left.out) * part.dt)[..., None]
    told = _merged(gain * part.x, part)
    last, states = _between(left, dot("bmgjn,bmgjz->bmgnz", b, told), h)
    wrote = left.within * _by_head(part.dt, part)[..., None, :]
    return Inside(b, c, left, wrote, scores, gain, told, states, last)


def _between(
    left: Decays, new: Float[Array, "B M G N Z"], h: Float[Array, "B G N Z"], reverse: bool = False
) -> tuple[Array, Array]:
    """From chunk to chunk, h = through h + new: the last, and those before (after) each chunk."""
    Z, R = new.shape[-1], left.through.shape[-1]
    through = jnp.repeat(left.through, Z // R, axis=-1)[..., None, :]

    def step(h: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        return now[0] * h + now[1], h

    rows = jnp.moveaxis(through, 1, 0), jnp.moveaxis(new, 1, 0)
    last, states = jax.lax.scan(step, h, rows, reverse=reverse)
    return last, jnp.moveaxis(states, 0, 1)


def _by_head(z: Float[Array, "B M Q H *rest"], part: Block) -> Float[Array, "B M G R Q *rest"]:
    z = z.reshape(*z.shape[:3], part.b.shape[3], -1, *z.shape[4:])
    return jnp.moveaxis(z, 2, 4)


def _by_token(z: Float[Array, "B M G R Q *rest"]) -> Float[Array, "B M Q H *rest"]:
    z = jnp.moveaxis(z, 4, 2)
    return z.reshape(*z.shape[:3], -1, *z.shape[5:])


def _merged(z: Float[Array, "B M Q H P"], part: Block) -> Float[Array, "B M G Q Z"]:
    """What a group's heads share is one wide product then, instead of one for each head."""
    return jnp.swapaxes(z.reshape(*z.shape[:3], part.b.shape[3], -1), 2, 3)


def _apart(z: Float[Array, "B M G Q Z"], part: Block) -> Float[Array, "B M Q H P"]:
    return jnp.swapaxes(z, 2, 3).reshape(part.x.shape)


IMPLEMENTATIONS = {"reference": reference, "xla": chunked}
