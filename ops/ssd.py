"""State space duality: a matrix state per head with one decay per head (Mamba-2, Dao & Gu,
arXiv:2405.21060).

    h[t] = exp(dt[t] a) h[t-1] + dt[t] x[t] (x) b[t];   y[t] = h[t] c[t]

B rows, T tokens, H heads of width P, G groups of heads that share b and c, N numbers of state.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.chunks import decays, forgetting, join, product, sizes, split
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
    axes = batch_axes(x.shape[0])
    rows, whole = P(axes or None), P()
    run = by_device(
        functools.partial(_scan, chunk), axes, (rows, rows, whole, rows, rows, rows, rows), rows
    )
    return run(x, dt, a, b, c, reset, state)


def _scan(
    chunk: int | None, x: Array, dt: Array, a: Array, b: Array, c: Array, reset: Array, state: Array
) -> tuple[Array, Array]:
    (T, H), G, wide = x.shape[1:3], b.shape[2], state.dtype
    if not T:
        return x, state
    dot, dt = product(x.dtype, wide), dt.astype(wide)

    def grouped(z: Float[Array, "B H *rest"]) -> Float[Array, "B G R *rest"]:
        return z.reshape(z.shape[0], G, H // G, *z.shape[2:])

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(h: Float[Array, "B G R N P"], part: tuple[Array, ...]) -> tuple[Array, Array]:
        x, dt, g, b, c = part
        left, x, dt = jax.tree.map(grouped, decays(g)), grouped(x), grouped(dt)
        weights = dot("bgin,bgjn->bgij", c, b)[:, :, None] * left.within * dt[..., None, :]
        y = dot("bgrij,bgrjp->bgrip", weights, x)
        y = y + left.into[..., None] * dot("bgin,bgrnp->bgrip", c, h)
        h = left.through[..., None, None] * h
        h = h + dot("bgjn,bgrjp->bgrnp", b, x.astype(wide) * (left.out * dt)[..., None])
        return h, y.reshape(y.shape[0], H, *y.shape[3:]).astype(x.dtype)

    rows = (x, dt, forgetting(dt * a.astype(wide), reset), b, c)
    parts = tuple(split(z, *sizes(T, chunk)) for z in rows)
    state, y = jax.lax.scan(step, grouped(jnp.swapaxes(state, 2, 3)), parts)
    return join(y, T), jnp.swapaxes(state.reshape(state.shape[0], H, *state.shape[3:]), 2, 3)


IMPLEMENTATIONS = {"reference": reference, "xla": chunked}
