"""Gated linear attention (Yang et al., arXiv:2312.06635): a matrix state that decays by channel.

    S[t] = Diag(exp g[t]) S[t-1] + k[t] v[t]^T;   o[t] = S[t]^T q[t]

With k = 1 - exp g it is the recurrence of HGRN-2 (arXiv:2404.07904), with a constant g for each
head lightning attention (arXiv:2401.04658), and with g = 0 linear attention without a normalizer.

Chunked form, with the decays `into`, `out_of`, `across` and between i and j that
`ops/recurrent/channel_decay.py` defines:

    S <- across S + sum over j of out_of[j] k[j] v[j]^T
    o = (q k^T, decayed) v + into q S

B rows, T tokens, H heads with keys of width K and values of width Kv, M chunks of Q tokens. g has a
last axis C of size K, or of size 1 where a head has one decay.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
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
from ops.recurrent.matrix_memory import MemoryInputs


def gla(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H Kv"],
    g: Float[Array, "B T H C"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H K Kv"] | None = None,
    chunk_size: int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H Kv"], Float[Array, "B H K Kv"]]:
    """Returns o in the dtype of v, and the state after the last token in at least float32.

    The caller scales queries. g <= 0 is the log of the decay. `reset` is True at the first token of
    a document, which starts from a state of 0. `chunk_size` is the largest number of tokens in a
    chunk; None takes the platform's default.

    Raises:
        ValueError: if shapes do not fit.
        ConfigError: if the implementation is unknown.
    """
    (B, T, H, K), Kv = q.shape, v.shape[-1]
    fits = g.shape[:-1] == (B, T, H) and g.shape[-1] in (1, K)
    if k.shape != q.shape or v.shape != (B, T, H, Kv) or not fits:
        shapes = f"q {q.shape}, k {k.shape}, v {v.shape}, g {g.shape}"
        raise ValueError(f"gla: shapes {shapes} do not fit [B T H K or Kv], [B T H K or 1]")
    wide = jnp.promote_types(v.dtype, jnp.float32)
    reset = jnp.zeros((B, T), bool) if reset is None else reset
    state = jnp.zeros((B, H, K, Kv), wide) if state is None else state.astype(wide)
    reason = matrix_memory.why_not(q, v, (g,), wide, chunk_size)
    reasons = dict.fromkeys(IMPLEMENTATIONS) | {"pallas": reason}
    preferred = prefer_step(T, tpu_kernel.PREFERRED)
    name = select_implementation("gla", implementation, reasons, preferred)
    g = log_decay_with_resets(g.astype(wide), reset)
    return IMPLEMENTATIONS[name](q, k, v, g, state, chunk_size)


def reference(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H Kv"],
    g: Float[Array, "B T H C"],
    state: Float[Array, "B H K Kv"],
    chunk_size: int | None,
) -> tuple[Float[Array, "B T H Kv"], Float[Array, "B H K Kv"]]:
    """Computes the recurrence token by token, as it is defined."""

    def step(S: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, g = (x.astype(state.dtype) for x in token)
        S = S * jnp.exp(g)[..., None] + k[..., None] * v[..., None, :]
        return S, jnp.sum(S * q[..., None], axis=-2)

    final_state, o = jax.lax.scan(step, state, tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, g)))
    return jnp.moveaxis(o, 0, 1).astype(v.dtype), final_state


def chunked(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H Kv"],
    g: Float[Array, "B T H C"],
    state: Float[Array, "B H K Kv"],
    chunk_size: int | None,
) -> tuple[Float[Array, "B T H Kv"], Float[Array, "B H K Kv"]]:
    """Computes the chunked form, one block of chunks after the other (section 4.2).

    The forward pass stores the states between blocks; the backward pass recomputes the other terms.
    """
    axes, context = batch_axes(q.shape[0]), context_axis(q.shape[1])
    token_spec, state_spec = PS(axes or None, context), PS(axes or None)
    run = map_shards(
        functools.partial(_per_device if context else _chunk_scan, chunk_size),
        (*axes, context) if context else axes,
        (*(token_spec,) * 4, state_spec),
        (token_spec, state_spec),
    )
    return run(q, k, v, g, state)


def _per_device(
    chunk_size: int | None, q: Array, k: Array, v: Array, g: Array, state: Array
) -> tuple[Array, Array]:
    """Runs one device's tokens from a state of 0, then adds the outputs of the incoming state."""
    o, local_state = _chunk_scan(chunk_size, q, k, v, g, jnp.zeros_like(state))
    into = jnp.exp(jnp.cumsum(g, axis=1))  # from before the device's first token
    state, final_state = propagate_state(state, local_state, into[:, -1, :, :, None])
    o_state = make_einsum(v.dtype, state.dtype)("bthk,bhkv->bthv", into * q, state)
    return (o + o_state).astype(v.dtype), final_state


def _chunk_scan(
    chunk_size: int | None, q: Array, k: Array, v: Array, g: Array, state: Array
) -> tuple[Array, Array]:
    """Cuts the tokens into blocks and runs them; arguments and results are those of `chunked`."""
    T = q.shape[1]
    if not T:
        return v, state
    dot = make_einsum(v.dtype, state.dtype)

    @recompute
    def step(S: Float[Array, "B H K Kv"], block: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, g = (jnp.swapaxes(z, 2, 3) for z in block)
        (scores,), decays = decayed_products((q,), k, g, dot)
        new = dot("bmhjk,bmhjv->bmhkv", k * decays.out_of, v)

        def chunk_step(S: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
            across, new = chunk
            return across * S + new, S

        chunks = tuple(jnp.moveaxis(z, 1, 0) for z in (decays.across, new))
        final_state, states = jax.lax.scan(chunk_step, S, chunks)
        o = dot("bmhij,bmhjv->bmhiv", scores, v)
        o = o + dot("bmhik,mbhkv->bmhiv", decays.into * q, states)
        return final_state, jnp.swapaxes(o.astype(v.dtype), 2, 3)

    state, o = jax.lax.scan(step, state, to_blocks((q, k, v, g), q.shape[2], chunk_size))
    return from_blocks(o, T), state


def in_kernel(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H Kv"],
    g: Float[Array, "B T H 1"],
    state: Float[Array, "B H K Kv"],
    chunk_size: int | None,
) -> tuple[Float[Array, "B T H Kv"], Float[Array, "B H K Kv"]]:
    """Computes the chunked form by the Pallas kernels of TPUs, where a head has one decay."""
    return matrix_memory.on_mesh(MemoryInputs(q, k, v, g), state)


def lightning_slopes(
    layer: int, layers: int, heads: int, table: Literal["transnormer", "minimax"]
) -> Float[np.ndarray, " heads"]:
    """Returns the constant decay rates of the heads of a layer of lightning attention: g = -slope.

    "transnormer" is the table of TransNormerLLM (arXiv:2307.14995), whose first head never forgets,
    and "minimax" that of MiniMax-01 (arXiv:2501.08313). Layers count from 0.
    """
    j = np.arange(heads)
    if table == "transnormer":
        return 8 / heads * (1 - layer / layers) * j
    return 2.0 ** (-8 * (j + 1) / heads) * (1 - layer / (layers - 1 + 1e-5) + 1e-5)


IMPLEMENTATIONS = {"reference": reference, "xla": chunked, "pallas": in_kernel}
