"""Delta rule with gates: an associative memory that erases what a key holds before it writes.

    S[t] = (I - k[t] (erase[t] * k[t])^T) Diag(exp g[t]) S[t-1] + k[t] (write[t] * v[t])^T
    o[t] = S[t]^T q[t]

These are Gated DeltaNet-2's gates (arXiv:2605.22791), with states of keys x values. With erase =
write = beta it is Kimi Delta Attention (arXiv:2510.26692), with one g for all channels of a head as
well Gated DeltaNet (arXiv:2412.06464, equation 10), and with g = 0 DeltaNet (arXiv:2406.06484).
Keys of n steps [B T n H K] are DeltaProduct (arXiv:2502.10297): the decay comes before the first
step, the output after the last. With an erase gate up to 2 a state can change its sign along a key
(arXiv:2411.12537).

The chunked form is the WY representation of a chunk's transitions (arXiv:2412.06464, section 3.3).
Token i writes v_new[i] under its key: write[i] v[i] minus the value that the decayed state holds
for erase[i] k[i]. This value depends on v_new[j] of all j < i. The triangular system is solved once
per chunk: for a state of 0 before the chunk (u), and for the effect of a state (w). The decays
`into`, `out_of` and `across`, and products with decays between i and j, are those of
`ops/recurrent/channel_decay.py`.

    A[i, j] = (erase[i] k[i]) . k[j], decayed,  for j < i, else 0
    u = (I + A)^-1 (write v);   w = (I + A)^-1 (into erase k);   v_new = u - w S
    S <- across S + sum over j of out_of[j] k[j] v_new[j]^T
    o = (q k^T, decayed) v_new + into q S

B rows, T tokens, H heads with keys of width K and values of width Kv, M chunks of Q tokens. Gates
have a last axis of size 1 (C, E, W) where one number serves all channels.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.context_parallel import context_axis, propagate_state
from ops.implementation import PS, batch_axes, map_shards, prefer_step, select_implementation
from ops.recompute import recompute
from ops.recurrent import matrix_memory, tpu_kernel
from ops.recurrent.channel_decay import decayed_products
from ops.recurrent.chunked_recurrence import (
    from_blocks,
    log_decay_with_resets,
    make_einsum,
    to_blocks,
)
from ops.recurrent.delta_chunks import (
    InterChunkTerms,
    inter_chunk_scan,
    matmul_highest,
    unit_lower_inverse,
)
from ops.recurrent.matrix_memory import MemoryInputs


def delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T *n H K"],
    v: Float[Array, "B T *n H Kv"],
    g: Float[Array, "B T H C"],
    erase: Float[Array, "B T *n H E"],
    write: Float[Array, "B T *n H W"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H K Kv"] | None = None,
    chunk_size: int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H Kv"], Float[Array, "B H K Kv"]]:
    """Returns o in the dtype of v, and the state after the last token in at least float32.

    The caller normalizes keys to length 1 and scales queries. g <= 0 is the log of the decay,
    `erase` lies in [0, 2]. `reset` is True at the first token of a document, which starts from a
    state of 0. `chunk_size` is the largest number of steps in a chunk; None: the platform's.

    Raises:
        ValueError: if shapes do not fit.
        ConfigError: if the implementation is unknown.
    """
    (B, T, H, K), Kv, steps = q.shape, v.shape[-1], k.shape[2:-2]
    lead = (B, T, *steps, H)
    gates = ((g, (B, T, H), K), (erase, lead, K), (write, lead, Kv))
    fits = all(z.shape[:-1] == axes and z.shape[-1] in (1, width) for z, axes, width in gates)
    if len(steps) > 1 or 0 in steps or k.shape != (*lead, K) or v.shape[:-1] != lead or not fits:
        names = {"q": q, "k": k, "v": v, "g": g, "erase": erase, "write": write}
        shapes = ", ".join(f"{name} {z.shape}" for name, z in names.items())
        raise ValueError(f"delta_rule: shapes {shapes} do not fit [B T H K], [B T n H K or 1]")
    wide = jnp.promote_types(v.dtype, jnp.float32)
    reset = jnp.zeros((B, T), bool) if reset is None else reset
    state = jnp.zeros((B, H, K, Kv), wide) if state is None else state.astype(wide)
    g, n = log_decay_with_resets(g.astype(wide), reset), steps[0] if steps else 1

    def in_step(z: Array, step: int) -> Array:
        z = jnp.pad(z[:, :, None], [(0, 0), (0, 0), (step, n - 1 - step), (0, 0), (0, 0)])
        return z.reshape(B, T * n, H, z.shape[-1])

    # Each of a token's steps is a token: the first decays the state, the last reads it.
    k, v, erase, write = (
        z.reshape(B, T * n, H, z.shape[-1]) for z in (k, v, erase.astype(wide), write.astype(wide))
    )
    q, g = in_step(q, n - 1), in_step(g, 0)
    reason = matrix_memory.why_not(q, v, (g, erase, write), wide, chunk_size)
    reasons = dict.fromkeys(IMPLEMENTATIONS) | {"pallas": reason}
    preferred = prefer_step(T, tpu_kernel.PREFERRED)
    name = select_implementation("delta_rule", implementation, reasons, preferred)
    o, state = IMPLEMENTATIONS[name](q, k, v, g, erase, write, state, chunk_size)
    return o[:, n - 1 :: n], state


def reference(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H Kv"],
    g: Float[Array, "B T H C"],
    erase: Float[Array, "B T H E"],
    write: Float[Array, "B T H W"],
    state: Float[Array, "B H K Kv"],
    chunk_size: int | None,
) -> tuple[Float[Array, "B T H Kv"], Float[Array, "B H K Kv"]]:
    """Computes the recurrence token by token, as it is defined."""
    wide = state.dtype

    def step(S: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, g, erase, write = (x.astype(wide) for x in token)
        S = S * jnp.exp(g)[..., None]
        v_new = write * v - jnp.sum(S * (erase * k)[..., None], axis=-2)
        S = S + k[..., None] * v_new[..., None, :]
        return S, jnp.sum(S * q[..., None], axis=-2)

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, g, erase, write))
    state, o = jax.lax.scan(step, state, tokens)
    return jnp.moveaxis(o, 0, 1).astype(v.dtype), state


def chunked(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H Kv"],
    g: Float[Array, "B T H C"],
    erase: Float[Array, "B T H E"],
    write: Float[Array, "B T H W"],
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
    return run(q, k, v, g, erase, write, state)


def _per_device(
    chunk_size: int | None,
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    erase: Array,
    write: Array,
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
    values = jnp.concatenate([(write * v).astype(v.dtype), zero_values], axis=-1)
    ones = jnp.ones_like(write[..., :1])
    o, last = _chunk_scan(chunk_size, q, k, values, g, erase, ones, initial_state)
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
    erase: Array,
    write: Array,
    state: Array,
) -> tuple[Array, Array]:
    """Cuts the tokens into blocks and runs them; arguments and results are those of `chunked`."""
    T, wide = q.shape[1], state.dtype
    if not T:
        return v, state
    dot = make_einsum(v.dtype, wide)

    @recompute
    def step(S: Float[Array, "B H K Kv"], block: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, g, erase, write = (jnp.swapaxes(z, 2, 3) for z in block)
        erased = erase * k
        (A, scores), decays = decayed_products((erased, q), k, g, dot)
        uw = jnp.concatenate([write * v, decays.into * erased], axis=-1)
        uw = matmul_highest(unit_lower_inverse(jnp.tril(A, -1)), uw.astype(wide))
        u, w = uw[..., : v.shape[-1]], uw[..., v.shape[-1] :]
        terms = (u, w, k * decays.out_of, decays.across)
        chunks = InterChunkTerms(*(jnp.moveaxis(z, 1, 0) for z in terms))
        final_state, states, v_new = inter_chunk_scan(v.dtype, S, chunks)
        o = dot("bmhij,mbhjv->bmhiv", scores, v_new)
        o = o + dot("bmhik,mbhkv->bmhiv", decays.into * q, states)
        return final_state, jnp.swapaxes(o.astype(v.dtype), 2, 3)

    blocks = to_blocks((q, k, v, g, erase, write), q.shape[2], chunk_size)
    state, o = jax.lax.scan(step, state, blocks)
    return from_blocks(o, T), state


def in_kernel(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H Kv"],
    g: Float[Array, "B T H 1"],
    erase: Float[Array, "B T H 1"],
    write: Float[Array, "B T H 1"],
    state: Float[Array, "B H K Kv"],
    chunk_size: int | None,
) -> tuple[Float[Array, "B T H Kv"], Float[Array, "B H K Kv"]]:
    """Computes the chunked form by the Pallas kernels of TPUs, where a head has one decay."""
    gates = jnp.concatenate([g, write, erase], axis=-1)
    return matrix_memory.on_mesh(MemoryInputs(q, k, v, gates), state)


IMPLEMENTATIONS = {"reference": reference, "xla": chunked, "pallas": in_kernel}
