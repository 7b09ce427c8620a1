"""Recurrence of an LSTM (Hochreiter & Schmidhuber 1997, with forget gates: Gers et al. 2000).

    i, f, o = sigmoid, g = tanh of (x[t] + h[t-1] w);   c[t] = f c[t-1] + i g;   h[t] = o tanh(c[t])

B rows, T tokens, C channels. x holds the inputs' contributions to the four gates i, f, o, g, side
by side in this order. The recurrence runs token by token, because every channel of h[t-1] acts on
every channel of h[t] through the gates: there is no chunked form.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.context_parallel import context_axis
from ops.implementation import PS, batch_axes, map_shards, select_implementation

UNROLL = 8  # tokens in one iteration of the loop

Carry = tuple[Float[Array, "B C"], Float[Array, "B C"]]  # h, c


def lstm(
    x: Float[Array, "B T 4C"],
    w: Float[Array, "C 4C"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Carry | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T C"], Carry]:
    """Returns h in the dtype of x, and (h, c) after the last token in at least float32.

    `reset` is True at the first token of a document, which starts from h = c = 0.

    Raises:
        ValueError: if shapes do not fit.
        ConfigError: if the implementation is unknown.
    """
    (B, T, _), C = x.shape, w.shape[0]
    if x.shape[2] != 4 * C or w.shape != (C, 4 * C):
        raise ValueError(f"lstm: gates {x.shape} and weights {w.shape} are not [B T 4C], [C 4C]")
    wide = jnp.promote_types(x.dtype, jnp.float32)
    reset = jnp.zeros((B, T), bool) if reset is None else reset
    zeros = jnp.zeros((B, C), wide)
    h, c = (zeros, zeros) if state is None else state
    name = select_implementation("lstm", implementation, dict.fromkeys(IMPLEMENTATIONS))
    h, (last_h, last_c) = IMPLEMENTATIONS[name](x, w, reset, (h.astype(wide), c.astype(wide)))
    return h.astype(x.dtype), (last_h, last_c)


def reference(
    x: Float[Array, "B T 4C"], w: Float[Array, "C 4C"], reset: Bool[Array, "B T"], carry: Carry
) -> tuple[Float[Array, "B T C"], Carry]:
    """Computes the recurrence token by token, with the backward pass that JAX derives from it."""

    def step(carry: Carry, token: tuple[Array, Array]) -> tuple[Carry, Array]:
        x, is_first = token
        h, c = _reset_carry(carry, is_first)
        h, c = _cell(x + _matmul(h, w, x.dtype), c)
        return (h, c), h

    carry, h = jax.lax.scan(step, carry, (jnp.moveaxis(x, 1, 0), reset.T))
    return jnp.moveaxis(h, 0, 1), carry


def fused(
    x: Float[Array, "B T 4C"], w: Float[Array, "C 4C"], reset: Bool[Array, "B T"], carry: Carry
) -> tuple[Float[Array, "B T C"], Carry]:
    """Computes the recurrence token by token, and the gradient of `w` in one product at the end.

    The backward pass that JAX derives from `reference` needs one such product for each token.
    """
    axes, context = batch_axes(x.shape[0]), context_axis(x.shape[1])
    # Not linear in its state: all devices that share a row compute all of its tokens.
    row_spec, replicated = PS(axes or None), PS()
    run = map_shards(
        _recurrence,
        (*axes, context) if context else axes,
        (row_spec, replicated, row_spec, row_spec),
        row_spec,
    )
    return run(x, w, reset, carry)


@jax.custom_vjp
def _recurrence(x: Array, w: Array, reset: Array, carry: Carry) -> tuple[Array, Carry]:
    return _forward(x, w, reset, carry)[0]


def _forward(x: Array, w: Array, reset: Array, carry: Carry) -> tuple[tuple, tuple]:
    def step(carry: Carry, token: tuple[Array, Array]) -> tuple[Carry, tuple]:
        x, is_first = token
        h, c = _reset_carry(carry, is_first)
        gates = x + _matmul(h, w, x.dtype)
        new = _cell(gates, c)
        return new, (new[0], gates, h, c)

    tokens = (jnp.moveaxis(x, 1, 0), reset.T)
    carry, (h, gates, *prev) = jax.lax.scan(step, carry, tokens, unroll=UNROLL)
    return (jnp.moveaxis(h, 0, 1), carry), (gates, *prev, w, reset)


def _backward(residuals: tuple, grads: tuple[Array, Carry]) -> tuple:
    gates, h, c, w, reset = residuals
    d_h, d_carry = jnp.moveaxis(grads[0], 1, 0), grads[1]

    def step(carry: Carry, token: tuple[Array, ...]) -> tuple[Carry, Array]:
        d_h, gates, c, is_first = token
        _, pull_cell = jax.vjp(_cell, gates, c)
        d_gates, d_c = pull_cell((carry[0] + d_h, carry[1]))
        d_h_prev = _matmul(d_gates, w.T, gates.dtype).astype(d_c.dtype)
        return _reset_carry((d_h_prev, d_c), is_first), d_gates

    tokens = (d_h.astype(c.dtype), gates, c, reset.T)
    d_carry, d_gates = jax.lax.scan(step, d_carry, tokens, reverse=True, unroll=UNROLL)
    wide = c.dtype
    d_w = jnp.einsum("tbc,tbg->cg", h.astype(gates.dtype), d_gates, preferred_element_type=wide)
    return jnp.moveaxis(d_gates, 0, 1), d_w.astype(w.dtype), None, d_carry


_recurrence.defvjp(_forward, _backward)


def _matmul(h: Array, w: Array, dtype: jnp.dtype) -> Array:
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.matmul(h.astype(dtype), w.astype(dtype), preferred_element_type=wide).astype(dtype)


def _cell(gates: Float[Array, "B 4C"], c: Float[Array, "B C"]) -> Carry:
    i, f, o, g = jnp.split(gates.astype(c.dtype), 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _reset_carry(carry: Carry, is_first: Bool[Array, " B"]) -> Carry:
    h, c = (jnp.where(is_first[:, None], 0, s) for s in carry)
    return h, c


IMPLEMENTATIONS = {"reference": reference, "xla": fused}
