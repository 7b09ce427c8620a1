"""Selective scan: a diagonal state whose step, input and output follow the token (Mamba, Gu & Dao,
arXiv:2312.00752).

    h[t] = exp(dt[t] a) h[t-1] + dt[t] u[t] b[t];   y[t] = h[t] . c[t]

B rows, T tokens, C channels, S numbers of state per channel. No skip, no gate, no softplus inside.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.placement import choose


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
        return h, jnp.einsum("bcs,bs->bc", h, c)

    rows = tuple(jnp.moveaxis(x, 1, 0) for x in (u, dt, b, c, reset))
    state, y = jax.lax.scan(step, state, rows)
    return jnp.moveaxis(y, 0, 1).astype(u.dtype), state


IMPLEMENTATIONS = {"reference": reference, "xla": reference}
