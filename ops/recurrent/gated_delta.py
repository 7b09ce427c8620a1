"""Gated delta rule (Gated DeltaNet, Yang et al., arXiv:2412.06464): a decaying associative memory.

    S[t] = exp(g[t]) (I - beta[t] k[t] k[t]^T) S[t-1] + beta[t] k[t] v[t]^T;   o[t] = S[t]^T q[t]

This is equation 10, transposed to keys x values: before a token writes its value under its key, the
value that the memory holds for this key is removed. With beta up to 2 a state can change its sign
along a key (arXiv:2411.12537).

The chunked form (section 3.3; its Gamma is L of `ChunkDecays`, and its gamma is state_decay_out).
Token i writes v_new[i] under its key: beta[i] times the difference between v[i] and the value that
the decayed state holds for k[i]. This value depends on v_new[j] of all j < i. The triangular system
is solved once per chunk: for a state of 0 before the chunk (u), and for the effect of a state (w).

    A[i, j] = beta[i] L[i, j] k[i] . k[j]   for j < i, else 0
    u = (I + A)^-1 (beta v);   w = (I + A)^-1 (beta state_decay_out k);   v_new = u - w S
    S <- decay_chunk S + sum over j of decay_states[j] k[j] v_new[j]^T
    o = (q k^T * L) v_new + state_decay_out * (q S)

B rows, T tokens, H heads with keys of width K and values of width Kv, M chunks of Q tokens.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ops.context_parallel import context_axis, propagate_state
from ops.implementation import PS, batch_axes, map_shards, prefer_step, select_implementation
from ops.recompute import recompute
from ops.recurrent.chunked_recurrence import (
    chunk_decays,
    from_blocks,
    log_decay_with_resets,
    make_einsum,
    to_blocks,
)

matmul_highest = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def gated_delta(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H Kv"],
    g: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H K Kv"] | None = None,
    chunk_size: int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H Kv"], Float[Array, "B H K Kv"]]:
    """Returns o in the dtype of v, and the state after the last token in at least float32.

    The caller normalizes keys to length 1 and scales queries. g <= 0 is the log of the decay, and
    beta lies in [0, 2]. `reset` is True at the first token of a document, which starts from a state
    of 0. `chunk_size` is the largest number of tokens in a chunk; None takes the platform's
    default.

    Raises:
        ValueError: if shapes do not fit.
        ConfigError: if the implementation is unknown.
    """
    (B, T, H, K), Kv = q.shape, v.shape[-1]
    if k.shape != q.shape or v.shape != (B, T, H, Kv) or not g.shape == beta.shape == (B, T, H):
        shapes = f"q {q.shape}, k {k.shape}, v {v.shape}, g {g.shape}, beta {beta.shape}"
        raise ValueError(f"gated_delta: shapes {shapes} do not fit [B T H K or Kv], [B T H]")
    wide = jnp.promote_types(v.dtype, jnp.float32)
    reset = jnp.zeros((B, T), bool) if reset is None else reset
    state = jnp.zeros((B, H, K, Kv), wide) if state is None else state.astype(wide)
    name = select_implementation(
        *("gated_delta", implementation, dict.fromkeys(IMPLEMENTATIONS)), prefer_step(T)
    )
    return IMPLEMENTATIONS[name](q, k, v, g, beta, reset, state, chunk_size)


def reference(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H Kv"],
    g: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B H K Kv"],
    chunk_size: int | None,
) -> tuple[Float[Array, "B T H Kv"], Float[Array, "B H K Kv"]]:
    """Computes the recurrence token by token, as it is defined."""
    wide = state.dtype

    def step(S: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        (q, k, v, g, beta), is_first = (x.astype(wide) for x in token[:5]), token[5]
        S = jnp.where(is_first[:, None, None, None], 0, S) * jnp.exp(g)[..., None, None]
        v_new = beta[..., None] * (v - jnp.sum(S * k[..., None], axis=-2))
        S = S + k[..., None] * v_new[..., None, :]
        return S, jnp.sum(S * q[..., None], axis=-2)

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, g, beta, reset))
    state, o = jax.lax.scan(step, state, tokens)
    return jnp.moveaxis(o, 0, 1).astype(v.dtype), state


def chunked(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H Kv"],
    g: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B H K Kv"],
    chunk_size: int | None,
) -> tuple[Float[Array, "B T H Kv"], Float[Array, "B H K Kv"]]:
    """Computes the chunked form, one block of chunks after the other (section 3.3).

    The forward pass stores the states between blocks; the backward pass recomputes the other terms.
    """
    axes, context = batch_axes(q.shape[0]), context_axis(q.shape[1])
    token_spec, state_spec = PS(axes or None, context), PS(axes or None)
    run = map_shards(
        functools.partial(_per_device if context else _chunk_scan, chunk_size),
        (*axes, context) if context else axes,
        (*(token_spec,) * 6, state_spec),
        (token_spec, state_spec),
    )
    return run(q, k, v, g, beta, reset, state)


def _per_device(
    chunk_size: int | None,
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    reset: Array,
    state: Array,
) -> tuple[Array, Array]:
    """Runs one device's tokens from a state of 0, then adds the effect of the incoming state.

    That effect is linear in the incoming state. It is computed in the same scan by K more value
    columns, whose values are 0 and whose initial state is the identity: their last state [K K] is
    the matrix by which the device's tokens multiply an incoming state, and their outputs are the
    coefficients of the outputs in the incoming state.
    """
    (K, Kv), zero_values = state.shape[2:], jnp.zeros_like(k, v.dtype)
    identity = jnp.broadcast_to(jnp.eye(K, dtype=state.dtype), (*state.shape[:2], K, K))
    initial_state = jnp.concatenate([jnp.zeros_like(state), identity], axis=-1)
    values = jnp.concatenate([v, zero_values], axis=-1)
    o, last = _chunk_scan(chunk_size, q, k, values, g, beta, reset, initial_state)
    dot = make_einsum(v.dtype, state.dtype)
    state, final_state = propagate_state(state, last[..., :Kv], last[..., Kv:], matmul_highest)
    o_state = dot("bthk,bhkv->bthv", o[..., Kv:], state)
    return (o[..., :Kv] + o_state).astype(v.dtype), final_state


def _chunk_scan(
    chunk_size: int | None,
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    reset: Array,
    state: Array,
) -> tuple[Array, Array]:
    """Cuts the tokens into blocks and runs them; arguments and results are those of `chunked`."""
    T, wide = q.shape[1], state.dtype
    if not T:
        return v, state
    dot = make_einsum(v.dtype, wide)

    @recompute
    def step(S: Float[Array, "B H K Kv"], block: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, g, beta = (jnp.swapaxes(z, 2, 3) for z in block)
        decays, beta = chunk_decays(g), beta[..., None]
        A = jnp.tril(beta * dot("bmhik,bmhjk->bmhij", k, k) * decays.L, -1)
        uw = jnp.concatenate([beta * v, beta * decays.state_decay_out[..., None] * k], axis=-1)
        uw = matmul_highest(unit_lower_inverse(A), uw.astype(wide))
        u, w = uw[..., : v.shape[-1]], uw[..., v.shape[-1] :]

        def chunk_step(S: Array, chunk: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
            u, w, k_decayed, decay_chunk = chunk
            v_new = u - dot("bhik,bhkv->bhiv", w, S)
            S_next = decay_chunk[..., None, None] * S + dot("bhjk,bhjv->bhkv", k_decayed, v_new)
            return S_next, (S, v_new)

        terms = (u, w, k * decays.decay_states[..., None], decays.decay_chunk)
        chunks = tuple(jnp.moveaxis(z, 1, 0) for z in terms)
        final_state, outputs = jax.lax.scan(chunk_step, S, chunks)
        states, v_new = (jnp.moveaxis(z, 0, 1) for z in outputs)
        scores = dot("bmhik,bmhjk->bmhij", q, k) * decays.L
        o = dot("bmhij,bmhjv->bmhiv", scores, v_new)
        o = o + decays.state_decay_out[..., None] * dot("bmhik,bmhkv->bmhiv", q, states)
        return final_state, jnp.swapaxes(o.astype(v.dtype), 2, 3)

    inputs = (q, k, v, log_decay_with_resets(g.astype(wide), reset), beta.astype(wide))
    state, o = jax.lax.scan(step, state, to_blocks(inputs, q.shape[2], chunk_size))
    return from_blocks(o, T), state


@jax.custom_jvp
def unit_lower_inverse(x: Float[Array, "*axes Q Q"]) -> Float[Array, "*axes Q Q"]:
    """Returns the inverse of I + x, where x is 0 on and above its diagonal.

    The inverse of [[A, 0], [C, D]] is [[1/A, 0], [-1/D C 1/A, 1/D]]; applied to diagonal blocks of
    1, 2, 4 .. tokens, it is as exact as substitution, which needs one step for each token. A series
    of powers of x is not exact, because the powers grow.
    """
    i, j = np.ogrid[: x.shape[-1], : x.shape[-1]]
    inverse, size = jnp.eye(x.shape[-1], dtype=x.dtype), 1
    while size < x.shape[-1]:
        corner = jnp.where((i // size == j // size + 1) & (j // size % 2 == 0), x, 0)
        inverse = inverse - (
            matmul_highest(inverse, matmul_highest(corner, inverse)) if size > 1 else corner
        )
        size *= 2
    return jnp.broadcast_to(inverse, x.shape)


@unit_lower_inverse.defjvp
def _unit_lower_inverse_jvp(x: tuple[Array], dx: tuple[Array]) -> tuple[Array, Array]:
    inverse = unit_lower_inverse(*x)
    return inverse, -matmul_highest(inverse, matmul_highest(*dx, inverse))


IMPLEMENTATIONS = {"reference": reference, "xla": chunked}
