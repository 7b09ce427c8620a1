"""State space duality (Mamba-2, Dao & Gu, arXiv:2405.21060): a matrix state with a scalar decay.

    h[t] = exp(dt[t] a) h[t-1] + dt[t] x[t] (x) b[t];   y[t] = h[t] c[t]

Chunked form (section 6 and listing 1; its X is dt x, its A is dt a). For tokens i, j of a chunk:

    Y_diag[i] = sum over j of CB[i, j] L[i, j] dt[j] x[j],   CB[i, j] = c[i] . b[j]
    Y_off[i]  = state_decay_out[i] states c[i],   states: h before the chunk
    states   <- decay_chunk states + sum over j of decay_states[j] dt[j] x[j] (x) b[j]
    y = Y_diag + Y_off;   L = exp(segsum(A)), and all decays are those of `ChunkDecays`

The scan over chunks is `_inter_chunk_scan`. The backward pass is written by hand. It recomputes
these terms and differentiates the equations from the last to the first; `d_z` is the gradient of z.

B rows, T tokens, H heads of width P in G groups of `rep` heads that share b and c, N numbers of
state per channel, M chunks of Q tokens in a block. "repP" is the axis of a group's rep P channels.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.context_parallel import context_axis, propagate_state
from ops.implementation import PS, batch_axes, map_shards, prefer_step, select_implementation
from ops.recurrent import matrix_memory, tpu_kernel
from ops.recurrent.chunked_recurrence import (
    ChunkDecays,
    chunk_decays,
    from_blocks,
    log_decay_with_resets,
    make_einsum,
    matmul_sum,
    pairwise_sum,
    to_blocks,
)
from ops.recurrent.matrix_memory import MemoryInputs


def ssd(
    x: Float[Array, "B T H P"],
    dt: Float[Array, "B T H"],
    a: Float[Array, " H"],
    b: Float[Array, "B T G N"],
    c: Float[Array, "B T G N"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H P N"] | None = None,
    chunk_size: int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H P"], Float[Array, "B H P N"]]:
    """Returns y in the dtype of x, and the state after the last token in at least float32.

    dt > 0 and a < 0; head i reads group i // (H / G). `reset` is True at the first token of a
    document, which starts from a state of 0. `chunk_size` is the largest number of tokens in a
    chunk; None takes the platform's default.

    Raises:
        ValueError: if shapes do not fit or the groups do not divide the heads.
        ConfigError: if the implementation is unknown.
    """
    (B, T, H, P), (G, N) = x.shape, b.shape[2:]
    if dt.shape != (B, T, H) or a.shape != (H,) or b.shape != c.shape or b.shape[:2] != (B, T):
        shapes = f"x {x.shape}, dt {dt.shape}, a {a.shape}, b {b.shape}, c {c.shape}"
        raise ValueError(f"ssd: shapes {shapes} do not fit [B T H P], [B T H], [H], [B T G N]")
    if H % G:
        raise ValueError(f"ssd: {H} heads do not divide into {G} groups; take a divisor of {H}")
    wide = jnp.promote_types(x.dtype, jnp.float32)
    reset = jnp.zeros((B, T), bool) if reset is None else reset
    state = jnp.zeros((B, H, P, N), wide) if state is None else state.astype(wide)
    reason = matrix_memory.why_not(c, x, (dt,), wide, chunk_size)
    reasons = dict.fromkeys(IMPLEMENTATIONS) | {"pallas": reason}
    preferred = prefer_step(T, tpu_kernel.PREFERRED)
    name = select_implementation("ssd", implementation, reasons, preferred)
    return IMPLEMENTATIONS[name](x, dt, a, b, c, reset, state, chunk_size)


def reference(
    x: Float[Array, "B T H P"],
    dt: Float[Array, "B T H"],
    a: Float[Array, " H"],
    b: Float[Array, "B T G N"],
    c: Float[Array, "B T G N"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B H P N"],
    chunk_size: int | None,
) -> tuple[Float[Array, "B T H P"], Float[Array, "B H P N"]]:
    """Computes the recurrence token by token, as it is defined."""
    wide, rep = state.dtype, x.shape[2] // b.shape[2]

    def step(h: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        (x, dt, b, c), is_first = (z.astype(wide) for z in token[:4]), token[4]
        b, c = (jnp.repeat(z, rep, axis=1) for z in (b, c))
        h = jnp.where(is_first[:, None, None, None], 0, h)
        h = jnp.exp(dt * a.astype(wide))[..., None, None] * h
        h = h + (dt[..., None] * x)[..., None] * b[..., None, :]
        return h, jnp.sum(h * c[..., None, :], axis=-1)

    tokens = tuple(jnp.moveaxis(z, 1, 0) for z in (x, dt, b, c, reset))
    state, y = jax.lax.scan(step, state, tokens)
    return jnp.moveaxis(y, 0, 1).astype(x.dtype), state


def chunked(
    x: Float[Array, "B T H P"],
    dt: Float[Array, "B T H"],
    a: Float[Array, " H"],
    b: Float[Array, "B T G N"],
    c: Float[Array, "B T G N"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B H P N"],
    chunk_size: int | None,
) -> tuple[Float[Array, "B T H P"], Float[Array, "B H P N"]]:
    """Computes the chunked form, one block of chunks after the other.

    The forward pass stores the states between blocks; the backward pass recomputes the other terms.
    """
    axes, context = batch_axes(x.shape[0]), context_axis(x.shape[1])
    token_spec, replicated, state_spec = PS(axes or None, context), PS(), PS(axes or None)
    run = map_shards(
        functools.partial(_per_device if context else _chunk_scan, chunk_size),
        (*axes, context) if context else axes,
        (token_spec, token_spec, replicated, token_spec, token_spec, token_spec, state_spec),
        (token_spec, state_spec),
    )
    return run(x, dt, a, b, c, reset, state)


def _per_device(
    chunk_size: int | None,
    x: Array,
    dt: Array,
    a: Array,
    b: Array,
    c: Array,
    reset: Array,
    state: Array,
) -> tuple[Array, Array]:
    """Runs one device's tokens from a state of 0, then adds the outputs of the incoming state."""
    y, local_state = _chunk_scan(chunk_size, x, dt, a, b, c, reset, jnp.zeros_like(state))
    A = log_decay_with_resets(dt.astype(state.dtype) * a.astype(state.dtype), reset)
    state_decay_out = jnp.exp(jnp.cumsum(A, axis=1))  # from before the device's first token
    state, final_state = propagate_state(state, local_state, state_decay_out[:, -1, :, None, None])
    dot = make_einsum(x.dtype, state.dtype)
    states = state.reshape(state.shape[0], b.shape[2], -1, *state.shape[2:])
    c_states = dot("btgn,bgrpn->btgrp", c, states).reshape(x.shape)
    return (y + state_decay_out[..., None] * c_states).astype(x.dtype), final_state


def _chunk_scan(
    chunk_size: int | None,
    x: Array,
    dt: Array,
    a: Array,
    b: Array,
    c: Array,
    reset: Array,
    state: Array,
) -> tuple[Array, Array]:
    """Cuts the tokens into blocks and runs them; arguments and results are those of `chunked`."""
    (B, T, H, P), (G, N), wide = x.shape, b.shape[2:], state.dtype
    if not T:
        return x, state
    dt = dt.astype(wide)
    inputs = SsdInputs(x, dt, log_decay_with_resets(dt * a.astype(wide), reset), b, c)
    state = jnp.moveaxis(state.reshape(B, G, -1, N), 2, 3)
    y, h = _block_scan(to_blocks(inputs, H, chunk_size), state)
    return from_blocks(y, T), jnp.moveaxis(h, 2, 3).reshape(B, H, P, N)


class SsdInputs(NamedTuple):
    """The inputs of M chunks of Q tokens, or of several such blocks along a first axis."""

    x: Float[Array, "*blocks B M Q H P"]
    dt: Float[Array, "*blocks B M Q H"]
    A: Float[Array, "*blocks B M Q H"]  # dt a, or LOG_ZERO at the first token of a document
    b: Float[Array, "*blocks B M Q G N"]
    c: Float[Array, "*blocks B M Q G N"]


class ChunkTerms(NamedTuple):
    """The intermediates of one block that both passes need."""

    b: Float[Array, "B M G Q N"]
    c: Float[Array, "B M G Q N"]
    decays: ChunkDecays  # with axes [B M G rep] before Q
    L_dt: Float[Array, "B M G rep Q Q"]  # L[i, j] dt[j]
    CB: Float[Array, "B M G 1 Q Q"]  # c[i] . b[j]
    decay_states_dt: Float[Array, "B M Q H 1"]  # decay_states[j] dt[j]
    x_decayed: Float[Array, "B M G Q repP"]  # decay_states[j] dt[j] x[j]
    states: Float[Array, "B M G N repP"]  # h before each chunk
    final_state: Float[Array, "B G N repP"]  # h after the last chunk


@jax.custom_vjp
def _block_scan(blocks: SsdInputs, h: Float[Array, "B G N repP"]) -> tuple[Array, Array]:
    """Returns y [blocks B M Q H P] and the last state, from the state `h` before the first block.

    Its backward pass is written by hand because it takes a third of the time of the one that
    automatic differentiation derives from a checkpointed `step`.
    """
    return _forward(blocks, h)[0]


def _forward(blocks: SsdInputs, h: Array) -> tuple[tuple[Array, Array], tuple]:
    dot = make_einsum(blocks.x.dtype, h.dtype)

    def step(h: Array, block: SsdInputs) -> tuple[Array, tuple[Array, Array]]:
        terms = _chunk_terms(block, h, chunk_decays(_heads_first(block.A, block)), dot)
        Y_diag = dot("bmgrij,bmgrjp->bmgrip", terms.CB * terms.L_dt, _heads_first(block.x, block))
        c_states = _split_heads(dot("bmgin,bmgnz->bmgiz", terms.c, terms.states), block)
        # Y_off = state_decay_out * c_states
        y = (
            _tokens_first(Y_diag)
            + _tokens_first(terms.decays.state_decay_out)[..., None] * c_states
        )
        return terms.final_state, (y.astype(block.x.dtype), h)

    final_state, (y, block_states) = jax.lax.scan(step, h, blocks)
    return (y, final_state), (blocks, block_states)


def _backward(residuals: tuple, grads: tuple[Array, Array]) -> tuple[SsdInputs, Array]:
    blocks, block_states = residuals
    dot = make_einsum(blocks.x.dtype, block_states.dtype)

    def step(d_h: Array, inputs: tuple[SsdInputs, Array, Array]) -> tuple[Array, SsdInputs]:
        block, h, d_y = inputs
        decays, pull_decays = jax.vjp(chunk_decays, _heads_first(block.A, block))
        terms = _chunk_terms(block, h, decays, dot)
        x, d_Y = _heads_first(block.x, block), _heads_first(d_y, block)
        # y = Y_diag + Y_off = (CB * L_dt) x + state_decay_out * (c states)
        d_CB_L_dt = dot("bmgrip,bmgrjp->bmgrij", d_Y, x)
        d_CB, d_L_dt = pairwise_sum(d_CB_L_dt * terms.L_dt), d_CB_L_dt * terms.CB
        d_y_decayed = _merge_heads(_tokens_first(decays.state_decay_out)[..., None] * d_y, block)
        d_h, d_states = _inter_chunk_scan(
            decays, dot("bmgin,bmgiz->bmgnz", terms.c, d_y_decayed), d_h, reverse=True
        )
        c_states = _split_heads(dot("bmgin,bmgnz->bmgiz", terms.c, terms.states), block)
        d_c = dot("bmgij,bmgjn->bmgin", d_CB, terms.b)
        d_c = d_c + dot("bmgiz,bmgnz->bmgin", d_y_decayed, terms.states)
        # the next chunk's states = decay_chunk * states + b x_decayed
        b_d_states = _split_heads(dot("bmgjn,bmgnz->bmgjz", terms.b, d_states), block)
        d_b = dot("bmgij,bmgin->bmgjn", d_CB, terms.c)
        d_b = d_b + dot("bmgjz,bmgnz->bmgjn", terms.x_decayed, d_states)
        d_x = (
            _tokens_first(dot("bmgrij,bmgrip->bmgrjp", terms.CB * terms.L_dt, d_Y))
            + terms.decay_states_dt * b_d_states
        )
        d_decay_states_dt = _heads_first(matmul_sum(block.x * b_d_states), block)
        d_dt = matmul_sum(d_L_dt * decays.L, -2) + d_decay_states_dt * decays.decay_states
        dt, products = _heads_first(block.dt, block), terms.states * d_states
        rep = decays.state_decay_out.shape[3]
        d_decay_chunk = jnp.sum(matmul_sum(products.reshape(*products.shape[:4], rep, -1)), axis=3)
        d_state_decay_out = _heads_first(matmul_sum(d_y * c_states), block)
        d_L, d_decay_states = d_L_dt * dt[..., None, :], d_decay_states_dt * dt
        (d_A,) = pull_decays(ChunkDecays(d_L, d_state_decay_out, d_decay_states, d_decay_chunk))
        d_bc = (jnp.swapaxes(z, 2, 3) for z in (d_b, d_c))
        return d_h, SsdInputs(d_x, _tokens_first(d_dt), _tokens_first(d_A), *d_bc)

    d_y, d_h = grads
    inputs = (blocks, block_states, d_y.astype(block_states.dtype))
    d_h, d_blocks = jax.lax.scan(step, d_h, inputs, reverse=True)
    return jax.tree.map(lambda z, like: z.astype(like.dtype), d_blocks, blocks), d_h


_block_scan.defvjp(_forward, _backward)


def _chunk_terms(
    block: SsdInputs, h: Array, decays: ChunkDecays, dot: Callable[..., Array]
) -> ChunkTerms:
    """Computes a block's intermediates from its inputs and the state `h` before it."""
    b, c = (jnp.swapaxes(z, 2, 3) for z in (block.b, block.c))
    CB = dot("bmgin,bmgjn->bmgij", c, b)[:, :, :, None]
    decay_states_dt = (_tokens_first(decays.decay_states) * block.dt)[..., None]
    x_decayed = _merge_heads(decay_states_dt * block.x, block)
    final_state, states = _inter_chunk_scan(decays, dot("bmgjn,bmgjz->bmgnz", b, x_decayed), h)
    L_dt = decays.L * _heads_first(block.dt, block)[..., None, :]
    return ChunkTerms(b, c, decays, L_dt, CB, decay_states_dt, x_decayed, states, final_state)


def _inter_chunk_scan(
    decays: ChunkDecays,
    new: Float[Array, "B M G N repP"],
    h: Float[Array, "B G N repP"],
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Runs h <- decay_chunk h + new over the chunks, from the last to the first if `reverse`.

    Returns the state after the scan [B G N repP], and the state before each of its steps
    [B M G N repP].
    """
    P = new.shape[-1] // decays.decay_chunk.shape[-1]
    decay_chunk = jnp.repeat(decays.decay_chunk, P, axis=-1)[..., None, :]

    def step(h: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        decay, new = chunk
        return decay * h + new, h

    chunks = jnp.moveaxis(decay_chunk, 1, 0), jnp.moveaxis(new, 1, 0)
    final_state, states = jax.lax.scan(step, h, chunks, reverse=reverse)
    return final_state, jnp.moveaxis(states, 0, 1)


def _heads_first(
    z: Float[Array, "B M Q H *inner"], block: SsdInputs
) -> Float[Array, "B M G rep Q *inner"]:
    z = z.reshape(*z.shape[:3], block.b.shape[3], -1, *z.shape[4:])
    return jnp.moveaxis(z, 2, 4)


def _tokens_first(z: Float[Array, "B M G rep Q *inner"]) -> Float[Array, "B M Q H *inner"]:
    z = jnp.moveaxis(z, 4, 2)
    return z.reshape(*z.shape[:3], -1, *z.shape[5:])


def _merge_heads(z: Float[Array, "B M Q H P"], block: SsdInputs) -> Float[Array, "B M G Q repP"]:
    """Joins the heads of a group, so that their product with b or c is one matrix product."""
    return jnp.swapaxes(z.reshape(*z.shape[:3], block.b.shape[3], -1), 2, 3)


def _split_heads(z: Float[Array, "B M G Q repP"], block: SsdInputs) -> Float[Array, "B M Q H P"]:
    return jnp.swapaxes(z, 2, 3).reshape(block.x.shape)


def in_kernel(
    x: Float[Array, "B T H P"],
    dt: Float[Array, "B T H"],
    a: Float[Array, " H"],
    b: Float[Array, "B T G N"],
    c: Float[Array, "B T G N"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B H P N"],
    chunk_size: int | None,
) -> tuple[Float[Array, "B T H P"], Float[Array, "B H P N"]]:
    """Computes the chunked form by the Pallas kernels of TPUs."""
    dt = dt.astype(state.dtype)
    A = log_decay_with_resets(dt * a.astype(state.dtype), reset)
    inputs = MemoryInputs(c, b, x, jnp.stack([A, dt], axis=-1))
    y, state = matrix_memory.on_mesh(inputs, jnp.swapaxes(state, 2, 3))
    return y, jnp.swapaxes(state, 2, 3)


IMPLEMENTATIONS = {"reference": reference, "xla": chunked, "pallas": in_kernel}
