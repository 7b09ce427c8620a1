"""The selective scan as loops of XLA: over chunks, and inside a chunk over its tokens.

`ops/recurrent/selective_scan.py` has the equations. The two forms differ in what a chunk is. The
looped one runs a second loop over the tokens of a chunk and forms all gradients of a token in one
turn, while they are in the cache of a CPU. The unrolled one has no second loop: the compiler fuses
the steps of a chunk into a few kernels, and the gradients of a chunk are reductions over arrays
[Q B N C] of its states.

B rows, T tokens, C channels, N numbers of state per channel, M chunks of Q tokens.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

CHUNK_SIZE = 32  # maximum number of tokens in a chunk of the loop
UNROLLED_CHUNK_SIZE = 16  # the same where a chunk is unrolled: the time to compile grows with it
Sums, Inputs, Outputs = TypeVar("Sums"), TypeVar("Inputs"), TypeVar("Outputs")
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def scan_rows(
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "N C"],
    b: Float[Array, "B T N"],
    c: Float[Array, "B T N"],
    reset: Bool[Array, "B T"],
    h: Float[Array, "B N C"],
    *,
    unrolled: bool,
) -> tuple[Float[Array, "B T C"], Float[Array, "B N C"]]:
    """Cuts the tokens into chunks and scans them; returns y and the state after the last token.

    T is at least 1. `reset` is True at the first token of a document.
    """
    T, size = u.shape[1], UNROLLED_CHUNK_SIZE if unrolled else CHUNK_SIZE
    Q = -(-T // -(-T // size))
    tokens = ScanInputs(*(to_chunks(x, Q) for x in (u, dt, b, c, reset)))
    y, h = _scan(unrolled, tokens, a, h)
    return from_chunks(y, T), h


def to_chunks(x: Shaped[Array, "B T *inner"], Q: int) -> Shaped[Array, "M Q B *inner"]:
    """Cuts tokens into chunks of Q, the last of which is completed by zeros."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % Q), *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, Q, *x.shape[2:]), 0, 2)


def from_chunks(x: Shaped[Array, "M Q B *inner"], length: int) -> Shaped[Array, "B T *inner"]:
    """Reverses `to_chunks` and cuts its padding off: T is `length`."""
    x = jnp.moveaxis(x, 2, 0)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


class ScanInputs(NamedTuple):
    """The inputs of one token of each row, or of chunks of tokens along leading axes [M Q]."""

    u: Float[Array, "*axes B C"]
    dt: Float[Array, "*axes B C"]
    b: Float[Array, "*axes B N"]
    c: Float[Array, "*axes B N"]
    reset: Bool[Array, "*axes B"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(
    unrolled: bool, tokens: ScanInputs, a: Float[Array, "N C"], h: Float[Array, "B N C"]
) -> tuple[Array, Array]:
    """Returns y [M Q B C] and the last state, from the state `h` before the first token."""
    return _forward(unrolled, tokens, a, h)[0]


def _forward(
    unrolled: bool, tokens: ScanInputs, a: Array, h: Array
) -> tuple[tuple[Array, Array], tuple]:
    def step(h: Array, token: ScanInputs) -> tuple[Array, Array]:
        h = _next_state(h, token, a)
        return h, _einsum("bnc,bn->bc", h, token.c.astype(h.dtype)).astype(token.u.dtype)

    def chunk(h: Array, tokens: ScanInputs) -> tuple[Array, tuple[Array, Array]]:
        last, y = _scan_tokens(unrolled, step, h, tokens)
        return last, (y, h)

    last, (y, chunk_states) = jax.lax.scan(chunk, h, tokens)
    return (y, last), (tokens, a, chunk_states)


def backward(
    unrolled: bool,
    residuals: tuple[ScanInputs, Array, Float[Array, "M B N C"]],
    grads: tuple[Float[Array, "M Q B C"], Float[Array, "B N C"]],
) -> tuple[ScanInputs, Array, Array]:
    """Returns the gradients of the tokens, of `a` and of the state before the first token.

    The residuals are the tokens, `a` and the states before each chunk; `grads` are those of y and
    of the state after the last token.
    """
    tokens, a, chunk_states = residuals
    chunk_grads = _unrolled_chunk_grads if unrolled else _looped_chunk_grads

    def chunk(sums: tuple[Array, Array], inputs: tuple) -> tuple[tuple[Array, Array], tuple]:
        tokens, h, d_y = inputs
        _, h_prev = _scan_tokens(
            unrolled,
            lambda h, token: (_next_state(h, token, a), _reset_state(h, token)),
            *(h, tokens),
        )
        return chunk_grads(sums, tokens, h_prev, d_y, a)

    d_y, d_h = grads
    sums = (d_h, jnp.zeros_like(d_h))
    (d_h, d_a), d_tokens = jax.lax.scan(chunk, sums, (tokens, chunk_states, d_y), reverse=True)
    d_tokens = jax.tree.map(lambda d, x: d.astype(x.dtype), d_tokens, tokens[:4])
    d_inputs = ScanInputs(*d_tokens, reset=None)  # type: ignore[arg-type]  # bools have no gradient
    return d_inputs, d_a.sum(0), d_h


_scan.defvjp(_forward, backward)


def _looped_chunk_grads(
    sums: tuple[Array, Array],
    tokens: ScanInputs,
    h_prev: Float[Array, "Q B N C"],
    d_y: Float[Array, "Q B C"],
    a: Float[Array, "N C"],
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array, Array]]:
    """Returns `sums` before the chunk and the gradients of u, dt, b and c of its tokens.

    `sums` are the gradients of the state after the chunk and of `a` [B N C]; `h_prev` are the
    states before each token.
    """

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

    return jax.lax.scan(step, sums, (tokens, h_prev, d_y), reverse=True)


def _unrolled_chunk_grads(
    sums: tuple[Array, Array],
    tokens: ScanInputs,
    h_prev: Float[Array, "Q B N C"],
    d_y: Float[Array, "Q B C"],
    a: Float[Array, "N C"],
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array, Array]]:
    """Returns what `_looped_chunk_grads` returns, from the gradients of all states at once."""
    d_h, d_a = sums
    u, dt, b, c, d_y = (x.astype(d_h.dtype) for x in (*tokens[:4], d_y))

    def step(d_h: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        dt, c, d_y, reset = inputs
        d_h = d_h + c[..., None] * d_y[:, None]
        d_h_prev = jnp.where(reset[:, None, None], 0, jnp.exp(dt[:, None] * a) * d_h)
        return d_h_prev, d_h

    d_first, d_h = _scan_tokens(True, step, d_h, (dt, c, d_y, tokens.reset), reverse=True)
    deltaA, delta_u = jnp.exp(dt[:, :, None] * a), dt * u
    h = deltaA * h_prev + delta_u[:, :, None] * b[..., None]
    d_log_deltaA = d_h * deltaA * h_prev
    d_delta_u = _einsum("qbnc,qbn->qbc", d_h, b)
    d_dt = jnp.sum(d_log_deltaA * a, axis=2) + d_delta_u * u
    d_b, d_c = _einsum("qbnc,qbc->qbn", d_h, delta_u), _einsum("qbnc,qbc->qbn", h, d_y)
    d_a = d_a + jnp.sum(d_log_deltaA * dt[:, :, None], axis=0)
    return (d_first, d_a), (d_delta_u * dt, d_dt, d_b, d_c)


def _scan_tokens(
    unrolled: bool,
    step: Callable[[Sums, Inputs], tuple[Sums, Outputs]],
    sums: Sums,
    inputs: Inputs,
    reverse: bool = False,
) -> tuple[Sums, Outputs]:
    """Runs `step` over the tokens of a chunk, in a loop or unrolled."""
    unroll = UNROLLED_CHUNK_SIZE if unrolled else 1
    return jax.lax.scan(step, sums, inputs, reverse=reverse, unroll=unroll)


def _reset_state(h: Float[Array, "B N C"], token: ScanInputs) -> Float[Array, "B N C"]:
    return jnp.where(token.reset[:, None, None], 0, h)


def _next_state(
    h: Float[Array, "B N C"], token: ScanInputs, a: Float[Array, "N C"]
) -> Float[Array, "B N C"]:
    u, dt, b = (x.astype(h.dtype) for x in token[:3])
    deltaA = jnp.exp(dt[:, None] * a)
    return deltaA * _reset_state(h, token) + (dt * u)[:, None] * b[..., None]  # + deltaB_u
