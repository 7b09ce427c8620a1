"""Selective scan (Mamba, Gu & Dao, arXiv:2312.00752): a diagonal state with input-dependent decay.

    h[t] = exp(dt[t] a) h[t-1] + dt[t] u[t] b[t];   y[t] = h[t] . c[t]

Step size dt, input map b and output map c depend on the token (algorithm 2). The decay and the
input of a step have the names of the authors' `selective_scan_ref`, where dt is delta:

    deltaA = exp(dt a);   delta_u = dt u;   deltaB_u = delta_u b;   h[t] = deltaA h[t-1] + deltaB_u

Each number of the state has its own decay, so there is no form with products of matrices as in
`ops.recurrent.ssd`: the scan runs token by token. It stores the state only before each chunk;
the backward pass recomputes the states inside a chunk (section 3.3.2) and scans it in reverse.

B rows, T tokens, C channels, N numbers of state per channel, M chunks of Q tokens. The skip
connection, the gate and the softplus of dt are left to the caller.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.context_parallel import context_axis, propagate_state
from ops.implementation import (
    PS,
    auto_axes,
    batch_axes,
    map_shards,
    prefer_step,
    select_implementation,
)

CHUNK_SIZE = 32  # maximum number of tokens in a chunk
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def selective_scan(
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "C N"],
    b: Float[Array, "B T N"],
    c: Float[Array, "B T N"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B C N"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B C N"]]:
    """Returns y in the dtype of u, and the state after the last token in at least float32.

    dt > 0 and a < 0. `reset` is True at the first token of a document, which starts from a state
    of 0.

    Raises:
        ValueError: if shapes do not fit.
        ConfigError: if the implementation is unknown.
    """
    (B, T, C), N = u.shape, a.shape[1]
    if dt.shape != u.shape or a.shape[0] != C or b.shape != (B, T, N) or c.shape != (B, T, N):
        shapes = f"u {u.shape}, dt {dt.shape}, a {a.shape}, b {b.shape}, c {c.shape}"
        raise ValueError(f"selective_scan: shapes {shapes} do not fit [B T C], [C N], [B T N]")
    wide = jnp.promote_types(u.dtype, jnp.float32)
    reset = jnp.zeros((B, T), bool) if reset is None else reset
    state = jnp.zeros((B, C, N), wide) if state is None else state.astype(wide)
    name = select_implementation(
        *("selective_scan", implementation, dict.fromkeys(IMPLEMENTATIONS)), prefer_step(u.shape[1])
    )
    return IMPLEMENTATIONS[name](u, dt, a, b, c, reset, state)


def reference(
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "C N"],
    b: Float[Array, "B T N"],
    c: Float[Array, "B T N"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B C N"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B C N"]]:
    """Computes the recurrence token by token; its backward pass stores all states."""
    wide = state.dtype

    def step(h: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        (u, dt, b, c), is_first = (x.astype(wide) for x in token[:4]), token[4]
        h = jnp.where(is_first[:, None, None], 0, h)
        h = jnp.exp(dt[..., None] * a.astype(wide)) * h + (dt * u)[..., None] * b[:, None]
        return h, jnp.sum(h * c[:, None], axis=-1)

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (u, dt, b, c, reset))
    state, y = jax.lax.scan(step, state, tokens)
    return jnp.moveaxis(y, 0, 1).astype(u.dtype), state


def chunked(
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "C N"],
    b: Float[Array, "B T N"],
    c: Float[Array, "B T N"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B C N"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B C N"]]:
    """Computes the recurrence token by token and stores only the states between chunks.

    The backward pass recomputes a chunk's states. Inside, channels are the last axis: [B N C] is
    faster than [B C N].
    """
    if not u.shape[1]:
        return u, state
    axes, size = batch_axes(u.shape[0]), auto_axes().get("model", 1)
    model = "model" if size > 1 and u.shape[2] % size == 0 else None
    context = context_axis(u.shape[1])
    token_spec, channel_spec = PS(axes or None, context), PS(axes or None, context, model)
    state_spec = PS(axes or None, None, model)
    run = map_shards(
        _per_device if context else _chunk_rows,
        (*axes, *filter(None, (context, model))),
        (
            *(channel_spec, channel_spec, PS(None, model)),
            *(token_spec, token_spec, token_spec, state_spec),
        ),
        (channel_spec, state_spec),
    )
    y, h = run(u, dt, a.T.astype(state.dtype), b, c, reset, jnp.swapaxes(state, 1, 2))
    return y, jnp.swapaxes(h, 1, 2)


def _per_device(
    u: Array, dt: Array, a: Array, b: Array, c: Array, reset: Array, h: Float[Array, "B N C"]
) -> tuple[Float[Array, "B T C"], Float[Array, "B N C"]]:
    """Runs one device's tokens from a state of 0, then adds the outputs of the incoming state.

    Those outputs are a second scan over inputs of 0.
    """
    y, local_state = _chunk_rows(u, dt, a, b, c, reset, jnp.zeros_like(h))
    decay = jnp.exp(jnp.sum(dt.astype(h.dtype), axis=1)[:, None] * a)
    decay = jnp.where(reset.any(axis=1)[:, None, None], 0, decay)
    h, final_state = propagate_state(h, local_state, decay)
    y_state, _ = _chunk_rows(jnp.zeros_like(u), dt, a, b, c, reset, h)
    return y + y_state, final_state


def _chunk_rows(
    u: Array, dt: Array, a: Array, b: Array, c: Array, reset: Array, h: Float[Array, "B N C"]
) -> tuple[Float[Array, "B T C"], Float[Array, "B N C"]]:
    """Cuts the tokens into chunks and scans them."""
    (B, T, _), M = u.shape, -(-u.shape[1] // CHUNK_SIZE)
    Q = -(-T // M)

    def split(x: Array) -> Array:  # [B T ..] -> [M Q B ..]; zeros complete the last chunk
        x = jnp.pad(x, [(0, 0), (0, M * Q - T), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(B, M, Q, *x.shape[2:]), 0, 2)

    y, h = _scan(ScanInputs(*map(split, (u, dt, b, c, reset))), a, h)
    return jnp.moveaxis(y, 2, 0).reshape(B, -1, y.shape[-1])[:, :T], h


class ScanInputs(NamedTuple):
    """The inputs of one token of each row, or of chunks of tokens along leading axes [M Q]."""

    u: Float[Array, "*axes B C"]
    dt: Float[Array, "*axes B C"]
    b: Float[Array, "*axes B N"]
    c: Float[Array, "*axes B N"]
    reset: Bool[Array, "*axes B"]


@jax.custom_vjp
def _scan(
    tokens: ScanInputs, a: Float[Array, "N C"], h: Float[Array, "B N C"]
) -> tuple[Array, Array]:
    """Returns y [M Q B C] and the last state, from the state `h` before the first token."""
    return _forward(tokens, a, h)[0]


def _forward(tokens: ScanInputs, a: Array, h: Array) -> tuple[tuple[Array, Array], tuple]:
    def step(h: Array, token: ScanInputs) -> tuple[Array, Array]:
        h = _next_state(h, token, a)
        return h, _einsum("bnc,bn->bc", h, token.c.astype(h.dtype)).astype(token.u.dtype)

    def chunk(h: Array, tokens: ScanInputs) -> tuple[Array, tuple[Array, Array]]:
        last, y = jax.lax.scan(step, h, tokens)
        return last, (y, h)

    last, (y, chunk_states) = jax.lax.scan(chunk, h, tokens)
    return (y, last), (tokens, a, chunk_states)


def _backward(residuals: tuple, grads: tuple[Array, Array]) -> tuple[ScanInputs, Array, Array]:
    tokens, a, chunk_states = residuals

    def step(sums: tuple[Array, Array], inputs: tuple) -> tuple[tuple[Array, Array], tuple]:
        (d_h, d_a), (token, h_prev, d_y) = sums, inputs
        u, dt, b, c = (x.astype(d_h.dtype) for x in token[:4])
        d_y, deltaA, delta_u = d_y.astype(d_h.dtype), jnp.exp(dt[:, None] * a), dt * u
        h = deltaA * h_prev + delta_u[:, None] * b[..., None]
        d_h = d_h + c[..., None] * d_y[:, None]
        d_log_deltaA = d_h * deltaA * h_prev
        d_delta_u = _einsum("bnc,bn->bc", d_h, b)
        # A Python sum over N becomes one fused loop: XLA:CPU takes twice as long for a reduction.
        d_dt = sum((d_log_deltaA[:, n] * a[n] for n in range(a.shape[0])), d_delta_u * u)
        d_b, d_c = _einsum("bnc,bc->bn", d_h, delta_u), _einsum("bnc,bc->bn", h, d_y)
        d_h = jnp.where(token.reset[:, None, None], 0, deltaA * d_h)
        return (d_h, d_a + d_log_deltaA * dt[:, None]), (d_delta_u * dt, d_dt, d_b, d_c)

    def chunk(sums: tuple[Array, Array], inputs: tuple) -> tuple[tuple[Array, Array], tuple]:
        tokens, h, d_y = inputs
        _, h_prev = jax.lax.scan(
            lambda h, token: (_next_state(h, token, a), _reset_state(h, token)), h, tokens
        )
        return jax.lax.scan(step, sums, (tokens, h_prev, d_y), reverse=True)

    d_y, d_h = grads
    sums = (d_h, jnp.zeros_like(d_h))
    (d_h, d_a), d_tokens = jax.lax.scan(chunk, sums, (tokens, chunk_states, d_y), reverse=True)
    d_tokens = jax.tree.map(lambda d, x: d.astype(x.dtype), d_tokens, tokens[:4])
    d_inputs = ScanInputs(*d_tokens, reset=None)  # type: ignore[arg-type]  # bools have no gradient
    return d_inputs, d_a.sum(0), d_h


_scan.defvjp(_forward, _backward)


def _reset_state(h: Float[Array, "B N C"], token: ScanInputs) -> Float[Array, "B N C"]:
    return jnp.where(token.reset[:, None, None], 0, h)


def _next_state(
    h: Float[Array, "B N C"], token: ScanInputs, a: Float[Array, "N C"]
) -> Float[Array, "B N C"]:
    u, dt, b = (x.astype(h.dtype) for x in token[:3])
    deltaA = jnp.exp(dt[:, None] * a)
    return deltaA * _reset_state(h, token) + (dt * u)[:, None] * b[..., None]  # + deltaB_u


IMPLEMENTATIONS = {"reference": reference, "xla": chunked}
