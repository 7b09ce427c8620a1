"""Causal depthwise convolution that stops at documents: the short filter before an SSM's scan.

    y[t] = sum_k w[k] x[t - K + 1 + k] + bias

B rows, T tokens, C channels, K taps; `w[K - 1]` meets the token itself. No activation inside.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops.context import before, cut_by, of_last
from ops.placement import P, batch_axes, by_device, choose, free_axes


def causal_conv(
    x: Float[Array, "B T C"],
    w: Float[Array, "K C"],
    bias: Float[Array, " C"] | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B K-1 C"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B K-1 C"]]:
    """y in the dtype of x, summed in at least float32, and the state that goes on after it.

    `reset` is True where a document begins: from there on nothing before it is seen. `state` holds
    the K - 1 inputs before the first token, and what is returned those before the next one; inputs
    of another document than the last token's are 0 in it. Its dtype is kept (by default that of x).
    """
    (B, _, C), K = x.shape, w.shape[0]
    if K < 1 or w.shape != (K, C):
        raise ValueError(f"causal_conv: taps {w.shape} do not fit x {x.shape}; w is [K C]")
    state = jnp.zeros((B, K - 1, C), x.dtype) if state is None else state
    if state.shape != (B, K - 1, C):
        raise ValueError(f"causal_conv: state {state.shape} must be {(B, K - 1, C)}, [B K-1 C]")
    name = choose("causal_conv", implementation, dict.fromkeys(IMPLEMENTATIONS))
    return IMPLEMENTATIONS[name](x, w, bias, reset, state)


def reference(
    x: Float[Array, "B T C"],
    w: Float[Array, "K C"],
    bias: Float[Array, " C"] | None,
    reset: Bool[Array, "B T"] | None,
    state: Float[Array, "B K-1 C"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B K-1 C"]]:
    """Token by token."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    begins = jnp.zeros(x.shape[:2], bool) if reset is None else reset

    def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        x, begins = now
        seen = jnp.where(begins[:, None, None], 0, state)
        seen = jnp.concatenate([seen, x[:, None].astype(state.dtype)], axis=1)
        y = jnp.sum(seen.astype(wide) * w.astype(wide), axis=1)
        return seen[:, 1:], y if bias is None else y + bias.astype(wide)

    state, y = jax.lax.scan(step, state, (jnp.moveaxis(x, 1, 0), begins.T))
    return jnp.moveaxis(y, 0, 1).astype(x.dtype), state


def shifted(
    x: Float[Array, "B T C"],
    w: Float[Array, "K C"],
    bias: Float[Array, " C"] | None,
    reset: Bool[Array, "B T"] | None,
    state: Float[Array, "B K-1 C"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B K-1 C"]]:
    """A sum of K shifted products, of each device with the end of the tokens before its own."""
    axes, context = batch_axes(x.shape[0]), cut_by(x.shape[1])
    if not context or x.shape[1] // free_axes()[context] < w.shape[0]:
        return _shifted(x, w, bias, reset, state)
    rows, still = P(axes or None, context), P(axes or None)
    run = by_device(_piece, (*axes, context), (rows, P(), P(), rows, still), (rows, still))
    return run(x, w, bias, reset, state)


def _piece(
    x: Array, w: Array, bias: Array | None, reset: Array | None, state: Array
) -> tuple[Array, Array]:
    K, begins = w.shape[0], jnp.zeros(x.shape[:2], bool) if reset is None else reset
    own = begins, x
    begins, x = (
        jnp.concatenate([before(z, K - 1, first), z], axis=1)
        for z, first in zip(own, (jnp.zeros(state.shape[:2], bool), state), strict=True)
    )
    y, last = _shifted(x, w, bias, None if reset is None else begins, jnp.zeros_like(state))
    return y[:, K - 1 :], of_last(last)


def _shifted(
    x: Float[Array, "B T C"],
    w: Float[Array, "K C"],
    bias: Float[Array, " C"] | None,
    reset: Bool[Array, "B T"] | None,
    state: Float[Array, "B K-1 C"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B K-1 C"]]:
    T, K, wide = x.shape[1], w.shape[0], jnp.promote_types(x.dtype, jnp.float32)
    rows = jnp.concatenate([state.astype(wide), x.astype(wide)], axis=1)
    last = jax.lax.slice_in_dim(rows, T, T + K - 1, axis=1)
    age = None if reset is None else _age(reset, K)
    y = jnp.zeros(x.shape, wide)
    for k in range(K):
        seen, back = jax.lax.slice_in_dim(rows, k, k + T, axis=1), K - 1 - k
        if age is not None and back:
            seen = jnp.where(age[..., None] >= back, seen, 0)
        y = y + w[k].astype(wide) * seen
    if bias is not None:
        y = y + bias.astype(wide)
    if age is not None and T:
        before = jnp.arange(K - 2, -1, -1)  # the last token
        last = jnp.where((age[:, -1:] >= before)[..., None], last, 0)
    return y.astype(x.dtype), last.astype(state.dtype)


def _age(reset: Bool[Array, "B T"], K: int) -> Int[Array, "B T"]:
    """How many tokens of its document stand before a token; at least K if it began before."""
    place = jnp.arange(reset.shape[1])
    return place - jax.lax.cummax(jnp.where(reset, place, -K), axis=1)


IMPLEMENTATIONS = {"reference": reference, "xla": shifted}
