"""Matrix memories as Pallas kernels for TPUs: one for each pass, with the states on the chip.

They serve `ssd`, `gla` and `delta_rule` where a head has one decay and one gate of each kind. The
equations of a chunk are in `ops/recurrent/matrix_memory_chunk.py`.

A program of the grid owns a row and a few heads and takes the chunks one after the other. It reads
each token once and writes its output once, besides the states before each chunk. The backward
kernel takes these states from the last chunk to the first and differentiates `memory_chunk` inside.

B rows, T tokens, H heads in G groups that share queries and keys of width K, values of width Kv,
R gates of a head: the logarithm g of the decay, write, erase. P programs own n heads each. M chunks
of Q tokens.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.recurrent import tpu_kernel
from ops.recurrent.matrix_memory_chunk import memory_chunk
from ops.recurrent.tpu_kernel import LANES as Q

MAX_LANES = 512  # of the values of a program's heads


class MemoryInputs(NamedTuple):
    """The inputs of a row; gates are in float32."""

    q: Float[Array, "B T G K"]
    k: Float[Array, "B T G K"]
    v: Float[Array, "B T H Kv"]
    gates: Float[Array, "B T H R"]  # g, then write, then erase; the last ones may be left out


def heads_of_program(G: int, H: int, K: int, Kv: int) -> int:
    """Returns n, or 0 if no number of heads fills the lanes of registers."""
    is_shared = G < H
    if is_shared and G > 1 and K % Q:
        return 0
    best = 0
    for n in range(1, (H // G if is_shared else H) + 1):
        if (H // G if is_shared else H) % n == 0 and (n * Kv <= MAX_LANES or not best):
            fills = n * Kv % Q == 0 and (is_shared or n * K % Q == 0)
            best = n if fills or n == H else best
    return best


def scan_rows(
    inputs: MemoryInputs,
    state: Float[Array, "B H K Kv"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B T H Kv"], Float[Array, "B H K Kv"]]:
    """Returns o in the dtype of v, and the state after the last token.

    `interpret` interprets the kernels instead of compiling them, which works on any platform.
    """
    (B, T, H, Kv), (G, K), R = inputs.v.shape, inputs.q.shape[2:], inputs.gates.shape[-1]
    n = heads_of_program(G, H, K, Kv)

    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, -T % Q), (0, 0), (0, 0)])

    q, k, v, gates = (pad(x) for x in inputs)
    q, k, v = (x.reshape(B, x.shape[1], -1) for x in (q, k, v))
    gates = jnp.transpose(gates.reshape(B, -1, H // n, n * R), (0, 2, 3, 1))
    shape = _Shape(n, K, Kv, R, G, H)
    o, last = _scan(shape, interpret, q, k, v, gates, state.reshape(B, H // n, n * K, Kv))
    return o.reshape(B, -1, H, Kv)[:, :T], last.reshape(B, H, K, Kv)


class _Shape(NamedTuple):
    """The sizes of a program."""

    n: int
    K: int
    Kv: int
    R: int
    G: int
    H: int

    @property
    def is_shared(self) -> bool:
        """Whether the heads of a program have the same queries and keys."""
        return self.G < self.H

    def head(self, i: int, refs) -> tuple[Array, Array, Array, Array]:  # type: ignore[no-untyped-def]
        """Returns the arrays of head i from references to q, k, v and gates."""
        q, k, v, gates = refs
        keys, rows = self.keys(i), slice(i * self.R, (i + 1) * self.R)
        return q[0, :, keys], k[0, :, keys], v[0, :, self.values(i)], gates[0, 0, rows]

    def keys(self, i: int) -> slice:
        """Returns the lanes of the queries and keys of head i."""
        return slice(None) if self.is_shared else self.states(i)

    def values(self, i: int) -> slice:
        """Returns the lanes of the values of head i."""
        return slice(i * self.Kv, (i + 1) * self.Kv)

    def states(self, i: int) -> slice:
        """Returns the rows of the state of head i."""
        return slice(i * self.K, (i + 1) * self.K)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(
    shape: _Shape,
    interpret: bool,
    q: Float[Array, "B T GK"],
    k: Float[Array, "B T GK"],
    v: Float[Array, "B T HKv"],
    gates: Float[Array, "B P nR T"],
    state: Float[Array, "B P nK Kv"],
) -> tuple[Array, Array]:
    return _forward(shape, interpret, q, k, v, gates, state)[0]


def _forward(
    shape: _Shape, interpret: bool, *inputs: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    v, state = inputs[2], inputs[4]
    (B, P), M = state.shape[:2], v.shape[1] // Q
    keys, values, gates, states, chunk_states, _ = _block_specs(shape, lambda m: m)
    o, last, chunk_state = tpu_kernel.call(
        functools.partial(_forward_kernel, shape),
        (B, P, M),
        (keys, keys, values, gates, states),
        (values, states, chunk_states),
        [
            (v.shape, v.dtype),
            (state.shape, state.dtype),
            ((B, P, M, *state.shape[2:]), state.dtype),
        ],
        [state.shape[2:]],
        interpret,
    )(*inputs)
    return (o, last), (*inputs[:4], chunk_state)


def _forward_kernel(shape: _Shape, q, k, v, gates, h, o, last, chunk_state, state) -> None:  # type: ignore[no-untyped-def]
    """Computes a chunk; arguments are references to blocks, `state` stays on the chip."""
    import jax.experimental.pallas as pl

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        state[...] = h[0, 0]

    chunk_state[0, 0, 0] = state[...]
    for i in range(shape.n):
        rows = shape.states(i)
        head = shape.head(i, (q, k, v, gates))
        o_head, state[rows] = memory_chunk(*head, state[rows])
        o[0, :, shape.values(i)] = o_head.astype(o.dtype)
    last[0, 0] = state[...]


def _backward(
    shape: _Shape, interpret: bool, residuals: tuple[Array, ...], grads: tuple[Array, Array]
) -> tuple[Array, ...]:
    q, _, v, gates, chunk_states = residuals
    (B, P, M), (T, GK) = chunk_states.shape[:3], q.shape[1:]
    keys, values, gate_rows, states, chunk_specs, shared = _block_specs(shape, lambda m: M - 1 - m)
    d_keys = ((B, P, T, GK // shape.G), jnp.float32) if shape.is_shared else (q.shape, q.dtype)
    d_q, d_k, d_v, d_gates, d_h = tpu_kernel.call(
        functools.partial(_backward_kernel, shape),
        (B, P, M),
        (keys, keys, values, gate_rows, chunk_specs, values, states),
        (*(shared if shape.is_shared else keys,) * 2, values, gate_rows, states),
        [
            *(d_keys, d_keys, (v.shape, v.dtype), (gates.shape, gates.dtype)),
            (grads[1].shape, jnp.float32),
        ],
        [grads[1].shape[2:]],
        interpret,
    )(*residuals, *grads)
    if shape.is_shared:
        groups = B, shape.G, P // shape.G, T, shape.K
        sums = (jnp.moveaxis(x.reshape(groups).sum(2), 1, 2) for x in (d_q, d_k))
        d_q, d_k = (x.reshape(q.shape).astype(q.dtype) for x in sums)
    return d_q, d_k, d_v, d_gates, d_h


_scan.defvjp(_forward, _backward)


def _backward_kernel(  # type: ignore[no-untyped-def]
    shape: _Shape, q, k, v, gates, chunk_state, d_o, d_last, d_q, d_k, d_v, d_gates, d_h, d_state
) -> None:
    """Computes the gradients of a chunk; `d_state` stays on the chip."""
    import jax.experimental.pallas as pl

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        d_state[...] = d_last[0, 0]

    sums = [0.0, 0.0]
    for i in range(shape.n):
        rows, values = shape.states(i), shape.values(i)
        gate_rows = slice(i * shape.R, (i + 1) * shape.R)
        head = shape.head(i, (q, k, v, gates))
        pull = jax.vjp(memory_chunk, *head, chunk_state[0, 0, 0, rows])[1]
        grads = pull((d_o[0, :, values].astype(jnp.float32), d_state[rows]))
        d_v[0, :, values], d_gates[0, 0, gate_rows], d_state[rows] = grads[2:]
        if shape.is_shared:
            sums = [x + d.astype(jnp.float32) for x, d in zip(sums, grads[:2], strict=True)]
        else:
            keys = shape.keys(i)
            d_q[0, :, keys], d_k[0, :, keys] = grads[:2]
    if shape.is_shared:
        d_q[0, 0], d_k[0, 0] = sums
    d_h[0, 0] = d_state[...]


def _block_specs(shape: _Shape, chunk):  # type: ignore[no-untyped-def]
    """Returns the blocks of keys, values, gates, states, chunk states and shared gradients."""
    import jax.experimental.pallas as pl  # a slow import

    n, K, Kv, R, G, H = shape
    if shape.is_shared:
        keys = pl.BlockSpec((1, Q, K), lambda b, p, m: (b, chunk(m), p * n // (H // G)))
    else:
        keys = pl.BlockSpec((1, Q, n * K), lambda b, p, m: (b, chunk(m), p))
    return (
        keys,
        pl.BlockSpec((1, Q, n * Kv), lambda b, p, m: (b, chunk(m), p)),
        pl.BlockSpec((1, 1, n * R, Q), lambda b, p, m: (b, p, 0, chunk(m))),
        pl.BlockSpec((1, 1, n * K, Kv), lambda b, p, m: (b, p, 0, 0)),
        pl.BlockSpec((1, 1, 1, n * K, Kv), lambda b, p, m: (b, p, chunk(m), 0, 0)),
        pl.BlockSpec((1, 1, Q, K), lambda b, p, m: (b, p, chunk(m), 0)),
    )
