"""Gated delta rule: a decaying memory that forgets what a key held before it writes (Yang et al.,
arXiv:2412.06464, equation 10, transposed to keys x values).

    s[t] = exp(g[t]) (I - beta[t] k[t] k[t]^T) s[t-1] + beta[t] k[t] v[t]^T;   o[t] = s[t]^T q[t]

B rows, T tokens, H heads with keys of width K and values of width V. With beta up to 2 a state can
change its sign along a key (arXiv:2411.12537).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ops.chunks import blocks, decays, forgetting, join, product
from ops.context import carried, cut_by
from ops.placement import P, batch_axes, by_device, choose

full = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


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
        q, k, v, g, beta = (jnp.swapaxes(z, 2, 3) for z in part)
        left, beta = decays(g), beta[..., None]
        # Token i writes beta (v - what its key finds), and finds what tokens j < i wrote: of its
        # chunk by these products, of the state before it by `known`.
        finds = jnp.tril(beta * dot("bmhik,bmhjk->bmhij", k, k) * left.within, -1)
        both = jnp.concatenate([beta * v, beta * left.into[..., None] * k], axis=-1)
        both = full(inverse(finds), both.astype(wide))
        wanted, known = both[..., : v.shape[-1]], both[..., v.shape[-1] :]

        def hop(s: Array, now: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
            wanted, known, k, through = now
            write = wanted - dot("bhik,bhkv->bhiv", known, s)
            new = through[..., None, None] * s + dot("bhjk,bhjv->bhkv", k, write)
            return new, (s, write)

        chunks = (wanted, known, k * left.out[..., None], left.through)
        last, told = jax.lax.scan(hop, s, tuple(jnp.moveaxis(z, 1, 0) for z in chunks))
        states, write = (jnp.moveaxis(z, 0, 1) for z in told)
        scores = dot("bmhik,bmhjk->bmhij", q, k) * left.within
        o = dot("bmhij,bmhjv->bmhiv", scores, write)
        o = o + left.into[..., None] * dot("bmhik,bmhkv->bmhiv", q, states)
        return last, jnp.swapaxes(o.astype(v.dtype), 2, 3)

    parts = (q, k, v, forgetting(g.astype(wide), reset), beta.astype(wide))
    state, o = jax.lax.scan(step, state, blocks(parts, q.shape[2], chunk))
    return join(o, T), state


@jax.custom_jvp
def inverse(x: Float[Array, "*rest Q Q"]) -> Float[Array, "*rest Q Q"]:
    """Of 1 + x, where x is 0 on and above its diagonal.

    [[A, 0], [C, D]] has [[1/A, 0], [-1/D C 1/A, 1/D]], for diagonal blocks of 1, 2, 4 .. tokens: as
    exact as substitution, which costs a step for every token (powers of x are not: they grow).
    """
    i, j = np.ogrid[: x.shape[-1], : x.shape[-1]]
    found, size = jnp.eye(x.shape[-1], dtype=x.dtype), 1
    while size < x.shape[-1]:
        corner = jnp.where((i // size == j // size + 1) & (j // size % 2 == 0), x, 0)
        found = found - (full(found, full(corner, found)) if size > 1 else corner)
        size *= 2
    return jnp.broadcast_to(found, x.shape)


@inverse.defjvp
def _inverse_jvp(x: tuple[Array], dx: tuple[Array]) -> tuple[Array, Array]:
    found = inverse(*x)
    return found, -full(found, full(*dx, found))


IMPLEMENTATIONS = {"reference": reference, "xla": chunked}
