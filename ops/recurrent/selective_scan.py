"""Selective scan (Mamba, Gu & Dao, arXiv:2312.00752): a diagonal state with input-dependent decay.

    h[t] = exp(dt[t] a) h[t-1] + dt[t] u[t] b[t];   y[t] = h[t] . c[t]

Step size dt, input map b and output map c depend on the token (algorithm 2). The decay and the
input of a step have the names of the authors' `selective_scan_ref`, where dt is delta:

    deltaA = exp(dt a);   delta_u = dt u;   deltaB_u = delta_u b;   h[t] = deltaA h[t-1] + deltaB_u

Each number of the state has its own decay, so there is no form with products of matrices as in
`ops.recurrent.ssd`: the scan runs token by token. All forms store the state only before each chunk;
their backward pass recomputes the states inside a chunk (section 3.3.2) and scans it in reverse.
`xla` loops over tokens and suits a CPU. `unrolled` loops over chunks only, because each turn of a
loop costs the launches of several kernels. `pallas` is one kernel for each pass, on TPUs;
`mosaic_gpu` is one kernel for the forward pass on NVIDIA GPUs, taken where it is asked for.

B rows, T tokens, C channels, N numbers of state per channel, M chunks of Q tokens. The skip
connection, the gate and the softplus of dt are left to the caller.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops.context_parallel import context_axis, propagate_state
from ops.implementation import (
    PS,
    auto_axes,
    batch_axes,
    map_shards,
    prefer_step,
    select_implementation,
)
from ops.recurrent import selective_scan_kernel, selective_scan_mosaic
from ops.recurrent.selective_scan_loop import scan_rows

# The fastest forms of a platform, best first.
PREFERRED = {"gpu": ("unrolled",), "tpu": ("pallas", "unrolled")}


def selective_scan(
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "C N"],
    b: Float[Array, "B T N"],
    c: Float[Array, "B T N"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B C N"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B C N"]]:
    """Returns y in the dtype of u, and the state after the last token in at least float32.

    dt > 0 and a < 0. `reset` is True at the first token of a document, which starts from a state
    of 0.

    Raises:
        ValueError: if shapes do not fit.
        ConfigError: if the implementation is unknown.
    """
    (B, T, C), N = u.shape, a.shape[1]
    if dt.shape != u.shape or a.shape[0] != C or b.shape != (B, T, N) or c.shape != (B, T, N):
        shapes = f"u {u.shape}, dt {dt.shape}, a {a.shape}, b {b.shape}, c {c.shape}"
        raise ValueError(f"selective_scan: shapes {shapes} do not fit [B T C], [C N], [B T N]")
    wide = jnp.promote_types(u.dtype, jnp.float32)
    reset = jnp.zeros((B, T), bool) if reset is None else reset
    state = jnp.zeros((B, C, N), wide) if state is None else state.astype(wide)
    reasons = dict.fromkeys(IMPLEMENTATIONS) | {
        "pallas": selective_scan_kernel.why_not(C // model_size(C), wide),
        "mosaic_gpu": selective_scan_mosaic.why_not(C // model_size(C), N, wide),
    }
    preferred = prefer_step(T, PREFERRED)
    name = select_implementation("selective_scan", implementation, reasons, preferred)
    return IMPLEMENTATIONS[name](u, dt, a, b, c, reset, state)


def reference(
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "C N"],
    b: Float[Array, "B T N"],
    c: Float[Array, "B T N"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B C N"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B C N"]]:
    """Computes the recurrence token by token; its backward pass stores all states."""
    wide = state.dtype

    def step(h: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        (u, dt, b, c), is_first = (x.astype(wide) for x in token[:4]), token[4]
        h = jnp.where(is_first[:, None, None], 0, h)
        h = jnp.exp(dt[..., None] * a.astype(wide)) * h + (dt * u)[..., None] * b[:, None]
        return h, jnp.sum(h * c[:, None], axis=-1)

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (u, dt, b, c, reset))
    state, y = jax.lax.scan(step, state, tokens)
    return jnp.moveaxis(y, 0, 1).astype(u.dtype), state


def _on_mesh(
    scan: Callable[..., tuple[Array, Array]],
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "C N"],
    b: Float[Array, "B T N"],
    c: Float[Array, "B T N"],
    reset: Bool[Array, "B T"],
    state: Float[Array, "B C N"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B C N"]]:
    """Runs `scan` on each device's rows, tokens and channels.

    Inside, channels are the last axis: [B N C] is faster than [B C N].
    """
    if not u.shape[1]:
        return u, state
    axes, model = batch_axes(u.shape[0]), "model" if model_size(u.shape[2]) > 1 else None
    context = context_axis(u.shape[1])
    token_spec, channel_spec = PS(axes or None, context), PS(axes or None, context, model)
    state_spec = PS(axes or None, None, model)
    run = map_shards(
        functools.partial(_per_device, scan) if context else scan,
        (*axes, *filter(None, (context, model))),
        (
            *(channel_spec, channel_spec, PS(None, model)),
            *(token_spec, token_spec, token_spec, state_spec),
        ),
        (channel_spec, state_spec),
    )
    y, h = run(u, dt, a.T.astype(state.dtype), b, c, reset, jnp.swapaxes(state, 1, 2))
    return y, jnp.swapaxes(h, 1, 2)


def model_size(num_channels: int) -> int:
    """Returns the number of devices that split the channels."""
    size = auto_axes().get("model", 1)
    return size if num_channels % size == 0 else 1


def _per_device(
    scan: Callable[..., tuple[Array, Array]],
    u: Array,
    dt: Array,
    a: Array,
    b: Array,
    c: Array,
    reset: Array,
    h: Float[Array, "B N C"],
) -> tuple[Float[Array, "B T C"], Float[Array, "B N C"]]:
    """Runs one device's tokens from a state of 0, then adds the outputs of the incoming state.

    Those outputs are a second scan over inputs of 0.
    """
    y, local_state = scan(u, dt, a, b, c, reset, jnp.zeros_like(h))
    decay = jnp.exp(jnp.sum(dt.astype(h.dtype), axis=1)[:, None] * a)
    decay = jnp.where(reset.any(axis=1)[:, None, None], 0, decay)
    h, final_state = propagate_state(h, local_state, decay)
    y_state, _ = scan(jnp.zeros_like(u), dt, a, b, c, reset, h)
    return y + y_state, final_state


IMPLEMENTATIONS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "reference": reference,
    "xla": functools.partial(_on_mesh, functools.partial(scan_rows, unrolled=False)),
    "unrolled": functools.partial(_on_mesh, functools.partial(scan_rows, unrolled=True)),
    "pallas": functools.partial(_on_mesh, selective_scan_kernel.scan_rows),
    "mosaic_gpu": functools.partial(_on_mesh, selective_scan_mosaic.scan_rows),
}
