"""Gated delta rule: a decaying memory that forgets what a key held before it writes (Yang et al.,
arXiv:2412.06464, equation 10, transposed to keys x values).

    s[t] = exp(g[t]) (I - beta[t] k[t] k[t]^T) s[t-1] + beta[t] k[t] v[t]^T;   o[t] = s[t]^T q[t]

B rows, T tokens, H heads with keys of width K and values of width V. With beta up to 2 a state can
change its sign along a key (arXiv:2411.12537).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.chunks import by_head, decays, forgetting, join, product, sizes, split
from ops.context import carried, cut_by
from ops.placement import P, batch_axes, by_device, choose


def gated_delta(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H K V"] | None = None,
    chunk: int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """o in the dtype of v, and the state after the last token in at least float32.

    Keys come with length 1 and queries scaled; g <= 0 is the log of the decay, beta in [0, 2].
    `reset` is True where a document begins: there the state before it is gone. `chunk` bounds the
    tokens of a chunk (by default by platform).
    """
    (B, T, H, K), V = q.shape, v.shape[-1]
    if k.shape != q.shape or v.shape != (B, T, H, V) or not g.shape == beta.shape == (B, T, H):
        shapes = f"q {q.shape}, k {k.shape}, v {v.shape}, g {g.shape}, beta {beta.shape}"
        raise ValueError(f"gated_delta: shapes {shapes} do not fit [B T H K or V], [B T H]")
    wide = jnp.promote_types(v.dtype, jnp.float32)
    reset = jnp.zeros((B, T), bool) if reset is None else reset
    state = jnp.zeros((B, H, K, V), wide) if state is None else state.astype(wide)
    name = choose("gated_delta", implementation, dict.fromkeys(IMPLEMENTATIONS))
    return IMPLEMENTATIONS[name](q, k, v, g, beta, reset, state, chunk)


def reference(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B H K V"],
    chunk: int | None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Token by token."""
    wide = state.dtype

    def step(s: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        (q, k, v, g, beta), begins = (x.astype(wide) for x in now[:5]), now[5]
        s = jnp.where(begins[:, None, None, None], 0, s) * jnp.exp(g)[..., None, None]
        write = beta[..., None] * (v - jnp.sum(s * k[..., None], axis=-2))
        s = s + k[..., None] * write[..., None, :]
        return s, jnp.sum(s * q[..., None], axis=-2)

    rows = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, g, beta, reset))
    state, o = jax.lax.scan(step, state, rows)
    return jnp.moveaxis(o, 0, 1).astype(v.dtype), state


def chunked(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B H K V"],
    chunk: int | None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Chunk after chunk (section 3.3); the backward pass keeps the states in between and computes
    the rest again."""
    axes, context = batch_axes(q.shape[0]), cut_by(q.shape[1])
    rows, still = P(axes or None, context), P(axes or None)
    run = by_device(
        functools.partial(_piece if context else _scan, chunk),
        (*axes, context) if context else axes,
        (*(rows,) * 6, still),
        (rows, still),
    )
    return run(q, k, v, g, beta, reset, state)


def _piece(
    chunk: int | None,
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    reset: Array,
    state: Array,
) -> tuple[Array, Array]:
    """One device's tokens: as if nothing came before, then what did.

    Values of no width K beside `v`, and the identity as their state, make what a piece does to any
    state that reaches it: the state is multiplied by what they end as, read by what they say.
    """
    (K, V), none = state.shape[2:], jnp.zeros_like(k, v.dtype)
    one = jnp.broadcast_to(jnp.eye(K, dtype=state.dtype), (*state.shape[:2], K, K))
    wide = jnp.concatenate([jnp.zeros_like(state), one], axis=-1)
    o, last = _scan(chunk, q, k, jnp.concatenate([v, none], axis=-1), g, beta, reset, wide)
    dot = product(v.dtype, state.dtype)
    full = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    state, final = carried(state, last[..., :V], last[..., V:], full)
    more = dot("bthk,bhkv->bthv", o[..., V:], state)
    return (o[..., :V] + more).astype(v.dtype), final


def _scan(
    chunk: int | None,
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    reset: Array,
    state: Array,
) -> tuple[Array, Array]:
    T, wide = q.shape[1], state.dtype
    if not T:
        return v, state
    dot = product(v.dtype, wide)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(s: Float[Array, "B H K V"], part: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, g, beta = by_head(part)
        left, beta = decays(g), beta[..., None]
        # Token i writes beta (v - what its key finds), and finds what tokens j < i wrote.
        finds = jnp.tril(beta * dot("bhik,bhjk->bhij", k, k) * left.within, -1)
        write = beta * (v - left.into[..., None] * dot("bhik,bhkv->bhiv", k, s))
        write = jax.lax.linalg.triangular_solve(
            finds, write, left_side=True, lower=True, unit_diagonal=True
        )
        scores = dot("bhik,bhjk->bhij", q, k) * left.within
        o = dot("bhij,bhjv->bhiv", scores, write)
        o = o + left.into[..., None] * dot("bhik,bhkv->bhiv", q, s)
        s = left.through[..., None, None] * s
        return s + dot("bhjk,bhjv->bhkv", k * left.out[..., None], write), by_head(
            o.astype(v.dtype)
        )

    parts = (q, k, v, forgetting(g.astype(wide), reset), beta.astype(wide))
    state, o = jax.lax.scan(step, state, tuple(split(x, *sizes(T, chunk)) for x in parts))
    return join(o, T), state


IMPLEMENTATIONS = {"reference": reference, "xla": chunked}
