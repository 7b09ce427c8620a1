"""Causal depthwise convolution that stops at document boundaries: the short filter before a scan.

    y[t] = sum over i of w[i] x[t - W + 1 + i] + bias

B rows, T tokens, C channels, W taps; `w[W - 1]` multiplies the token itself. There is no
activation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.context_parallel import broadcast_from_last, context_axis, left_halo
from ops.implementation import PS, auto_axes, batch_axes, map_shards, select_implementation
from ops.recompute import recompute


def causal_conv(
    x: Float[Array, "B T C"],
    w: Float[Array, "W C"],
    bias: Float[Array, " C"] | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B W-1 C"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B W-1 C"]]:
    """Returns y in the dtype of x, summed in at least float32, and the state for the next tokens.

    `reset` is True at the first token of a document, which sees no input before it. `state` holds
    the W - 1 inputs before the first token, and the returned state those before the next token.
    Inputs that are not of the last token's document are 0 in it. It has the dtype of `state`, by
    default that of x.

    Raises:
        ValueError: if shapes do not fit.
        ConfigError: if the implementation is unknown.
    """
    (B, _, C), W = x.shape, w.shape[0]
    if W < 1 or w.shape != (W, C):
        raise ValueError(f"causal_conv: taps {w.shape} do not fit x {x.shape}; w is [W C]")
    state = jnp.zeros((B, W - 1, C), x.dtype) if state is None else state
    if state.shape != (B, W - 1, C):
        raise ValueError(f"causal_conv: state {state.shape} must be {(B, W - 1, C)}, [B W-1 C]")
    name = select_implementation("causal_conv", implementation, dict.fromkeys(IMPLEMENTATIONS))
    return IMPLEMENTATIONS[name](x, w, bias, reset, state)


def reference(
    x: Float[Array, "B T C"],
    w: Float[Array, "W C"],
    bias: Float[Array, " C"] | None,
    reset: Bool[Array, "B T"] | None,
    state: Float[Array, "B W-1 C"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B W-1 C"]]:
    """Computes the convolution token by token, as it is defined."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    resets = jnp.zeros(x.shape[:2], bool) if reset is None else reset

    def step(state: Array, token: tuple[Array, Array]) -> tuple[Array, Array]:
        x, is_first = token
        inputs = jnp.where(is_first[:, None, None], 0, state)
        inputs = jnp.concatenate([inputs, x[:, None].astype(state.dtype)], axis=1)
        y = jnp.sum(inputs.astype(wide) * w.astype(wide), axis=1)
        return inputs[:, 1:], y if bias is None else y + bias.astype(wide)

    state, y = jax.lax.scan(step, state, (jnp.moveaxis(x, 1, 0), resets.T))
    return jnp.moveaxis(y, 0, 1).astype(x.dtype), state


def shifted_sum(
    x: Float[Array, "B T C"],
    w: Float[Array, "W C"],
    bias: Float[Array, " C"] | None,
    reset: Bool[Array, "B T"] | None,
    state: Float[Array, "B W-1 C"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B W-1 C"]]:
    """Computes the convolution as a sum of W shifted products.

    On a mesh that splits the tokens, each device gets the last inputs of the device before it.
    """
    axes, context = batch_axes(x.shape[0]), context_axis(x.shape[1])
    if not context or x.shape[1] // auto_axes()[context] < w.shape[0]:
        return _shifted_sum(x, w, bias, reset, state)
    token_spec, state_spec = PS(axes or None, context), PS(axes or None)
    run = map_shards(
        _per_device,
        (*axes, context),
        (token_spec, PS(), PS(), token_spec, state_spec),
        (token_spec, state_spec),
    )
    return run(x, w, bias, reset, state)


def _per_device(
    x: Array, w: Array, bias: Array | None, reset: Array | None, state: Array
) -> tuple[Array, Array]:
    W, resets = w.shape[0], jnp.zeros(x.shape[:2], bool) if reset is None else reset
    local = resets, x
    resets, x = (
        jnp.concatenate([left_halo(z, W - 1, first), z], axis=1)
        for z, first in zip(local, (jnp.zeros(state.shape[:2], bool), state), strict=True)
    )
    y, last = _shifted_sum(x, w, bias, None if reset is None else resets, jnp.zeros_like(state))
    return y[:, W - 1 :], broadcast_from_last(last)


@recompute
def _shifted_sum(
    x: Float[Array, "B T C"],
    w: Float[Array, "W C"],
    bias: Float[Array, " C"] | None,
    reset: Bool[Array, "B T"] | None,
    state: Float[Array, "B W-1 C"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B W-1 C"]]:
    T, W, wide = x.shape[1], w.shape[0], jnp.promote_types(x.dtype, jnp.float32)
    inputs = jnp.concatenate([state.astype(wide), x.astype(wide)], axis=1)
    last = jax.lax.slice_in_dim(inputs, T, T + W - 1, axis=1)
    visible = None if reset is None else _visible_inputs(reset, W)
    y = jnp.zeros(x.shape, wide)
    for i in range(W):
        shifted, distance = jax.lax.slice_in_dim(inputs, i, i + T, axis=1), W - 1 - i
        if visible is not None and distance:
            shifted = jnp.where(visible[distance][..., None], shifted, 0)
        y = y + w[i].astype(wide) * shifted
    if bias is not None:
        y = y + bias.astype(wide)
    if visible is not None and T and W > 1:
        of_last_token = jnp.stack([mask[:, -1] for mask in visible[W - 2 :: -1]], axis=1)
        last = jnp.where(of_last_token[..., None], last, 0)
    return y.astype(x.dtype), last.astype(state.dtype)


def _visible_inputs(reset: Bool[Array, "B T"], W: int) -> list[Bool[Array, "B T"]]:
    """Returns for each distance below W whether the input so far back is of the token's document.

    Inputs before the first token are, until a document begins.
    """
    visible, T = [jnp.ones_like(reset)], reset.shape[1]
    for distance in range(1, W):
        begins_between = jnp.pad(reset, ((0, 0), (distance - 1, 0)))[:, :T]
        visible.append(visible[-1] & ~begins_between)
    return visible


IMPLEMENTATIONS = {"reference": reference, "xla": shifted_sum}
