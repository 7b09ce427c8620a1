"""Ring attention: devices that hold parts of a row pass keys and values around (arXiv:2310.01889).

Each of n devices keeps its queries and, in n turns, sees the keys and values of every device. It
needs the memory of two parts of the row, where gathering needs that of the whole row. The outputs
of the turns are averaged with the weights exp(lse_r - lse), where lse_r is the logsumexp of a
query's scores in turn r and lse that of all turns. The backward pass goes around once more, with
the gradients of the keys and values, from the kept outputs and lse (Dao et al., arXiv:2205.14135).

A turn whose keys no query of the device can see is skipped. Under a causal mask the last device
computes n turns and the first one, so that a row of equal parts takes as long as without skipping,
and half the energy. Inside, heads come first: q is [B G rep T K], k is [B G S K], v is [B G S Kv].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.attention.chunked import attend_chunk, attend_chunk_gradients, map_query_chunks
from ops.attention.mask import AttentionSpec, TokenIndex
from ops.context_parallel import CONTEXT_AXIS

MIN_TOKENS = 2**16  # of a row from which on the ring is chosen; shorter rows are gathered


class Turn(NamedTuple):
    """What goes around."""

    k: Float[Array, "B G S K"]
    v: Float[Array, "B G S Kv"]
    keys: TokenIndex


class Gradients(NamedTuple):
    """Sums over turns; those of k and v go around with them."""

    q: Float[Array, "B G rep T K"]
    k: Float[Array, "B G S K"]
    v: Float[Array, "B G S Kv"]


def ring(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G Kv"],
    queries: TokenIndex,
    keys: TokenIndex,
    spec: AttentionSpec,
) -> Float[Array, "B T H Kv"]:
    """Returns the outputs of this device's queries; it runs inside `map_shards`.

    `spec.aligned` promises that the parts are those of one row, in the order of the devices.
    """
    (B, T, H, K), G = q.shape, k.shape[2]
    q = q.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    o = _ring(q, k, v, queries, keys, spec)
    return o.transpose(0, 3, 1, 2, 4).reshape(B, T, H, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _ring(
    q: Array, k: Array, v: Array, queries: TokenIndex, keys: TokenIndex, spec: AttentionSpec
) -> Float[Array, "B G rep T Kv"]:
    return _forward(q, k, v, queries, keys, spec)[0]


def _forward(
    q: Array, k: Array, v: Array, queries: TokenIndex, keys: TokenIndex, spec: AttentionSpec
) -> tuple[Array, tuple]:
    wide = jnp.promote_types(q.dtype, jnp.float32)

    def attend(turn: Turn) -> tuple[Array, Array]:
        def chunk(q: Array, queries: TokenIndex) -> tuple[Array, Array]:
            o, lse = attend_chunk(q, turn.k, turn.v, queries, turn.keys, 0, spec=spec)
            return o.astype(wide), jnp.where(lse == jnp.inf, -jnp.inf, lse)

        return map_query_chunks(chunk, q, queries)

    def step(carry: tuple[Array, Array, Turn], r: Array) -> tuple[tuple[Array, Array, Turn], None]:
        o, lse, turn = carry
        nothing = jnp.zeros_like(o), jnp.full_like(lse, -jnp.inf)
        o_r, lse_r = jax.lax.cond(_is_visible(r, spec, turn), attend, lambda _: nothing, turn)
        total = jnp.logaddexp(lse, lse_r)
        finite = jnp.where(total == -jnp.inf, 0, total)
        o = o * jnp.exp(lse - finite) + o_r * jnp.exp(lse_r - finite)
        return (o, total, _pass_on(turn)), None

    zeros = jnp.zeros((*q.shape[:-1], v.shape[-1]), wide)
    start = zeros, jnp.full_like(zeros[..., :1], -jnp.inf), Turn(k, v, keys)
    (o, lse, _), _ = jax.lax.scan(step, start, jnp.arange(jax.lax.axis_size(CONTEXT_AXIS)))
    o = o.astype(q.dtype)
    return o, (q, k, v, queries, keys, o, jnp.where(lse == -jnp.inf, jnp.inf, lse))


def _backward(spec: AttentionSpec, residuals: tuple, d_o: Array) -> tuple:
    q, k, v, queries, keys, o, lse = residuals

    def gradients(turn: Turn) -> tuple[Array, Array, Array]:
        def chunk(
            q: Array, o: Array, lse: Array, d_o: Array, queries: TokenIndex
        ) -> tuple[Array, Array, Array]:
            residuals = q, turn.k, turn.v, queries, turn.keys, None, o, lse
            return attend_chunk_gradients(spec, residuals, d_o)[:3]

        return map_query_chunks(chunk, q, o, lse, d_o, queries, num_sums=2)

    def step(carry: tuple[Gradients, Turn], r: Array) -> tuple[tuple[Gradients, Turn], None]:
        sums, turn = carry
        nothing = jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v)
        new = jax.lax.cond(_is_visible(r, spec, turn), gradients, lambda _: nothing, turn)
        sums = Gradients(*(a + b.astype(a.dtype) for a, b in zip(sums, new, strict=True)))
        return (Gradients(sums.q, *_pass_on(sums[1:])), _pass_on(turn)), None

    sums = Gradients(*(jnp.zeros(x.shape, lse.dtype) for x in (q, k, v)))
    turns = jnp.arange(jax.lax.axis_size(CONTEXT_AXIS))
    ((d_q, d_k, d_v), _), _ = jax.lax.scan(step, (sums, Turn(k, v, keys)), turns)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


_ring.defvjp(_forward, _backward)


def _pass_on(tree):  # type: ignore[no-untyped-def]
    """Sends arrays to the next device of the ring; after n turns they are where they began."""
    n = jax.lax.axis_size(CONTEXT_AXIS)
    return jax.lax.ppermute(tree, CONTEXT_AXIS, [(i, (i + 1) % n) for i in range(n)])


def _is_visible(r: Array, spec: AttentionSpec, turn: Turn) -> Bool[Array, ""]:
    """Returns whether some query of this device may see keys of turn r, by their places alone."""
    n, i = jax.lax.axis_size(CONTEXT_AXIS), jax.lax.axis_index(CONTEXT_AXIS)
    size, parts_before = turn.k.shape[2], i - (i - r) % n  # negative: the keys come later
    left, right = spec.mask_bounds(turn.keys)
    nearest = (jnp.abs(parts_before) - 1) * size + 1  # distance of the closest pair of tokens
    is_seen = jnp.ones((), bool)
    if left is not None:
        is_seen &= (parts_before <= 0) | (nearest <= left)
    if right is not None:
        is_seen &= (parts_before >= 0) | (nearest <= right)
    return is_seen
