"""Two steps of the chunked delta rule: the triangular system, and the states between chunks.

`ops/recurrent/delta_rule.py` has the equations and the names u, w, v_new, `out_of` and `across`.

B rows, H heads with keys of width K and values of width Kv, M chunks of Q tokens.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from ops.recurrent.chunked_recurrence import make_einsum

matmul_highest = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class InterChunkTerms(NamedTuple):
    """What leads from the state before a chunk to the state after it, for M chunks."""

    u: Float[Array, "M B H Q Kv"]
    w: Float[Array, "M B H Q K"]
    k_decayed: Float[Array, "M B H Q K"]  # out_of[j] k[j]
    across: Float[Array, "M B H C 1"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def inter_chunk_scan(
    dtype: DTypeLike, S: Float[Array, "B H K Kv"], chunks: InterChunkTerms
) -> tuple[Array, Array, Array]:
    """Returns the last state, the states before each chunk [M B H K Kv], and v_new [M B H Q Kv].

    Products have operands of `dtype`. The backward pass is written by hand so that its loop has
    only the gradients of the states: all others are products over all chunks at once. A GPU
    launches each kernel of a loop anew at every turn.
    """
    return _inter_chunk_forward(dtype, S, chunks)[0]


def _inter_chunk_forward(
    dtype: DTypeLike, S: Array, chunks: InterChunkTerms
) -> tuple[tuple[Array, Array, Array], tuple]:
    dot = make_einsum(dtype, S.dtype)
    w, k_decayed = chunks.w.astype(dtype), chunks.k_decayed.astype(dtype)

    def step(S: Array, chunk: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        u, w, k_decayed, across = chunk
        v_new = u - dot("bhik,bhkv->bhiv", w, S)
        return across * S + dot("bhjk,bhjv->bhkv", k_decayed, v_new), (S, v_new)

    final_state, (states, v_new) = jax.lax.scan(step, S, (chunks.u, w, k_decayed, chunks.across))
    return (final_state, states, v_new), (w, k_decayed, chunks.across, states, v_new)


def _inter_chunk_backward(
    dtype: DTypeLike, residuals: tuple[Array, ...], grads: tuple[Array, Array, Array]
) -> tuple[Array, InterChunkTerms]:
    (w, k_decayed, across, states, v_new), (d_final, d_states, d_v_new) = residuals, grads
    dot = make_einsum(dtype, states.dtype)

    def step(d_S: Array, chunk: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        w, k_decayed, across, d_state, d_v_new = chunk
        d_u = d_v_new + dot("bhjk,bhkv->bhjv", k_decayed, d_S)
        return d_state + across * d_S - dot("bhik,bhiv->bhkv", w, d_u), (d_S, d_u)

    chunks = w, k_decayed, across, d_states, d_v_new
    d_S, (d_next, d_u) = jax.lax.scan(step, d_final, chunks, reverse=True)
    d_w = -dot("mbhiv,mbhkv->mbhik", d_u, states)
    d_k_decayed = dot("mbhjv,mbhkv->mbhjk", v_new, d_next)
    over_channels = (-1, -2) if across.shape[-2] == 1 else -1
    d_across = jnp.sum(d_next * states, axis=over_channels, keepdims=True)
    return d_S, InterChunkTerms(d_u, d_w, d_k_decayed, d_across)


inter_chunk_scan.defvjp(_inter_chunk_forward, _inter_chunk_backward)


@jax.custom_jvp
def unit_lower_inverse(x: Float[Array, "*axes Q Q"]) -> Float[Array, "*axes Q Q"]:
    """Returns the inverse of I + x, where x is 0 on and above its diagonal.

    The inverse of [[A, 0], [C, D]] is [[1/A, 0], [-1/D C 1/A, 1/D]]; applied to diagonal blocks of
    1, 2, 4 .. tokens, it is as exact as substitution, which needs one step for each token. A series
    of powers of x is not exact, because the powers grow.
    """
    Q = x.shape[-1]
    i, j = (jax.lax.broadcasted_iota(jnp.int32, (Q, Q), axis) for axis in (0, 1))
    inverse = jnp.where(i == j, jnp.ones((), x.dtype), 0)
    for level in range((Q - 1).bit_length()):  # of blocks of 2^level tokens
        block_i, block_j = i >> level, j >> level
        corner = jnp.where((block_i == block_j + 1) & (block_j & 1 == 0), x, 0)
        inverse = inverse - (
            matmul_highest(inverse, matmul_highest(corner, inverse)) if level else corner
        )
    return jnp.broadcast_to(inverse, x.shape)


@unit_lower_inverse.defjvp
def _unit_lower_inverse_jvp(x: tuple[Array], dx: tuple[Array]) -> tuple[Array, Array]:
    inverse = unit_lower_inverse(*x)
    return inverse, -matmul_highest(inverse, matmul_highest(*dx, inverse))
