"""The recurrence of an LSTM (Hochreiter & Schmidhuber 1997, with forget gates: Gers et al. 2000).

    i, f, o = sigmoid, g = tanh of (x[t] + h[t-1] w);   c[t] = f c[t-1] + i g;   h[t] = o tanh(c[t])

B rows, T tokens, C channels; x are the inputs' part of the four gates, side by side in that order.
Token by token, as its mixing of the whole hidden vector demands.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.context import cut_by
from ops.placement import P, batch_axes, by_device, choose

UNROLL = 8  # tokens a pass of the loop

Carry = tuple[Float[Array, "B C"], Float[Array, "B C"]]  # h, c


def lstm(
    x: Float[Array, "B T 4C"],
    w: Float[Array, "C 4C"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Carry | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T C"], Carry]:
    """h in the dtype of x, and (h, c) after the last token in at least float32.

    `reset` is True where a document begins: there h and c are 0.
    """
    (B, T, _), C = x.shape, w.shape[0]
    if x.shape[2] != 4 * C or w.shape != (C, 4 * C):
        raise ValueError(f"lstm: gates {x.shape} and weights {w.shape} are not [B T 4C], [C 4C]")
    wide = jnp.promote_types(x.dtype, jnp.float32)
    reset = jnp.zeros((B, T), bool) if reset is None else reset
    zeros = jnp.zeros((B, C), wide)
    h, c = (zeros, zeros) if state is None else state
    name = choose("lstm", implementation, dict.fromkeys(IMPLEMENTATIONS))
    h, (last, cell) = IMPLEMENTATIONS[name](x, w, reset, (h.astype(wide), c.astype(wide)))
    return h.astype(x.dtype), (last, cell)


def reference(
    x: Float[Array, "B T 4C"], w: Float[Array, "C 4C"], reset: Bool[Array, "B T"], carry: Carry
) -> tuple[Float[Array, "B T C"], Carry]:
    """Token by token, differentiated as it stands."""

    def step(carry: Carry, now: tuple[Array, Array]) -> tuple[Carry, Array]:
        h, c = _gone(carry, now[1])
        h, c = _cell(now[0] + _product(h, w, now[0].dtype), c)
        return (h, c), h

    carry, h = jax.lax.scan(step, carry, (jnp.moveaxis(x, 1, 0), reset.T))
    return jnp.moveaxis(h, 0, 1), carry


def fused(
    x: Float[Array, "B T 4C"], w: Float[Array, "C 4C"], reset: Bool[Array, "B T"], carry: Carry
) -> tuple[Float[Array, "B T C"], Carry]:
    """The gradient of `w` is one product over all tokens at the end, not one a token."""
    axes, context = batch_axes(x.shape[0]), cut_by(x.shape[1])
    rows, whole = P(axes or None), P()  # not linear in its state: devices of a row all run all
    run = by_device(_run, (*axes, context) if context else axes, (rows, whole, rows, rows), rows)
    return run(x, w, reset, carry)


@jax.custom_vjp
def _run(x: Array, w: Array, reset: Array, carry: Carry) -> tuple[Array, Carry]:
    return _forward(x, w, reset, carry)[0]


def _forward(x: Array, w: Array, reset: Array, carry: Carry) -> tuple[tuple, tuple]:
    def step(carry: Carry, now: tuple[Array, Array]) -> tuple[Carry, tuple]:
        before = _gone(carry, now[1])
        gates = now[0] + _product(before[0], w, now[0].dtype)
        after = _cell(gates, before[1])
        return after, (after[0], gates, *before)

    xs = (jnp.moveaxis(x, 1, 0), reset.T)
    carry, (h, gates, *before) = jax.lax.scan(step, carry, xs, unroll=UNROLL)
    return (jnp.moveaxis(h, 0, 1), carry), (gates, *before, w, reset)


def _backward(kept: tuple, grads: tuple[Array, Carry]) -> tuple:
    gates, h, c, w, reset = kept
    d_h, d_carry = jnp.moveaxis(grads[0], 1, 0), grads[1]

    def step(carry: Carry, now: tuple[Array, ...]) -> tuple[Carry, Array]:
        d_h, gates, c, begins = now
        _, pull = jax.vjp(_cell, gates, c)
        d_gates, d_c = pull((carry[0] + d_h, carry[1]))
        back = _product(d_gates, w.T, gates.dtype).astype(d_c.dtype)
        return _gone((back, d_c), begins), d_gates

    xs = (d_h.astype(c.dtype), gates, c, reset.T)
    d_carry, d_gates = jax.lax.scan(step, d_carry, xs, reverse=True, unroll=UNROLL)
    wide = c.dtype
    inner = jnp.einsum("tbc,tbg->cg", h.astype(gates.dtype), d_gates, preferred_element_type=wide)
    return jnp.moveaxis(d_gates, 0, 1), inner.astype(w.dtype), None, d_carry


_run.defvjp(_forward, _backward)


def _product(h: Array, w: Array, dtype: jnp.dtype) -> Array:
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.matmul(h.astype(dtype), w.astype(dtype), preferred_element_type=wide).astype(dtype)


def _cell(gates: Float[Array, "B 4C"], c: Float[Array, "B C"]) -> Carry:
    i, f, o, g = jnp.split(gates.astype(c.dtype), 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gone(carry: Carry, begins: Bool[Array, " B"]) -> Carry:
    h, c = (jnp.where(begins[:, None], 0, s) for s in carry)
    return h, c


IMPLEMENTATIONS = {"reference": reference, "xla": fused}
