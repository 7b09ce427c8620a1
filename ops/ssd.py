"""State space duality: a matrix state per head with one decay per head (Mamba-2, Dao & Gu,
arXiv:2405.21060).

    h[t] = exp(dt[t] a) h[t-1] + dt[t] x[t] (x) b[t];   y[t] = h[t] c[t]

B rows, T tokens, H heads of width P, G groups of heads that share b and c, N numbers of state.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.placement import choose


def ssd(
    x: Float[Array, "B T H P"],
    dt: Float[Array, "B T H"],
    a: Float[Array, " H"],
    b: Float[Array, "B T G N"],
    c: Float[Array, "B T G N"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H P N"] | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H P"], Float[Array, "B H P N"]]:
    """y in the dtype of x, and the state after the last token in at least float32.

    dt > 0 and a < 0; head i uses group i // (H / G). `reset` is True where a document begins: there
    the state before it is gone.
    """
    (B, T, H, P), (G, N) = x.shape, b.shape[2:]
    if dt.shape != (B, T, H) or a.shape != (H,) or b.shape != c.shape or b.shape[:2] != (B, T):
        shapes = f"x {x.shape}, dt {dt.shape}, a {a.shape}, b {b.shape}, c {c.shape}"
        raise ValueError(f"ssd: shapes {shapes} do not fit [B T H P], [B T H], [H], [B T G N]")
    if H % G:
        raise ValueError(f"ssd: {H} heads do not divide into {G} groups; take a divisor of {H}")
    wide = jnp.promote_types(x.dtype, jnp.float32)
    reset = jnp.zeros((B, T), bool) if reset is None else reset
    state = jnp.zeros((B, H, P, N), wide) if state is None else state.astype(wide)
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
    chunk: int,
) -> tuple[Float[Array, "B T H P"], Float[Array, "B H P N"]]:
    """Token by token."""
    wide, heads = state.dtype, x.shape[2] // b.shape[2]

    def step(h: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        (x, dt, b, c), begins = (z.astype(wide) for z in now[:4]), now[4]
        b, c = (jnp.repeat(z, heads, axis=1) for z in (b, c))
        h = jnp.where(begins[:, None, None, None], 0, h)
        h = jnp.exp(dt * a.astype(wide))[..., None, None] * h
        h = h + jnp.einsum("bhp,bhn->bhpn", dt[..., None] * x, b)
        return h, jnp.einsum("bhpn,bhn->bhp", h, c)

    rows = tuple(jnp.moveaxis(z, 1, 0) for z in (x, dt, b, c, reset))
    state, y = jax.lax.scan(step, state, rows)
    return jnp.moveaxis(y, 0, 1).astype(x.dtype), state


IMPLEMENTATIONS = {"reference": reference, "xla": reference}
