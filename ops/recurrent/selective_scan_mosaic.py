"""The selective scan's forward pass as one Mosaic GPU kernel, for NVIDIA's Hopper and newer.

`ops/recurrent/selective_scan.py` has the equations. A program of the grid owns a row and 128
channels, one for each thread, and takes the chunks one after the other, while the inputs of the
next one are on their way. A thread keeps the N numbers of its channel's state in registers, so that
of global memory the pass reads its inputs and writes its outputs once, and the state after each
chunk. The backward pass is that of the unrolled
form, which recomputes the states of a chunk from the one before it.

B rows, T tokens, C channels, N numbers of state per channel, M chunks of Q tokens.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from ops.recurrent import selective_scan_loop
from ops.recurrent.selective_scan_loop import UNROLLED_CHUNK_SIZE as Q
from ops.recurrent.selective_scan_loop import ScanInputs, from_chunks, to_chunks

THREADS = 128  # threads of a program, which are its channels
MAX_STATE_SIZE = 64  # numbers that fit a thread's registers


def why_not(num_channels: int, state_size: int, dtype: DTypeLike) -> str | None:
    """Returns why the kernel cannot run states of `dtype` on this device's channels, or None."""
    if dtype != jnp.float32:
        return f"the state is {jnp.dtype(dtype).name}, the kernel computes in float32"
    if num_channels % THREADS:
        return f"{num_channels} channels per device are no multiple of {THREADS}"
    if state_size > MAX_STATE_SIZE or state_size % 2:
        return f"{state_size} numbers of state per channel are odd or more than {MAX_STATE_SIZE}"
    return None


def scan_rows(
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "N C"],
    b: Float[Array, "B T N"],
    c: Float[Array, "B T N"],
    reset: Bool[Array, "B T"],
    h: Float[Array, "B N C"],
    *,
    interpret: object = None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B N C"]]:
    """Returns y and the state after the last token; see `ops.recurrent.selective_scan`.

    `reset` is True at the first token of a document. `interpret` holds the parameters of Pallas'
    interpreter of GPUs, which runs the kernel on any platform; None compiles it.
    """
    T = u.shape[1]
    tokens = ScanInputs(
        *(jnp.pad(x, [(0, 0), (0, -T % Q), *[(0, 0)] * (x.ndim - 2)]) for x in (u, dt, b, c, reset))
    )
    y, last = _scan(interpret, tokens, a, h)
    return y[:, :T].astype(u.dtype), last


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(
    interpret: object, tokens: ScanInputs, a: Float[Array, "N C"], h: Float[Array, "B N C"]
) -> tuple[Array, Array]:
    """Scans tokens [B T ..], where T is a multiple of Q."""
    return _forward(interpret, tokens, a, h)[0]


def _forward(
    interpret: object, tokens: ScanInputs, a: Array, h: Array
) -> tuple[tuple[Array, Array], tuple]:
    y, states = _run_kernel(interpret, tokens, a, h)
    chunk_states = jnp.concatenate([h[None], jnp.moveaxis(states, 1, 0)[:-1]])
    return (y, states[:, -1]), (tokens, a, chunk_states)


def _backward(
    interpret: object, residuals: tuple, grads: tuple[Array, Array]
) -> tuple[ScanInputs, Array, Array]:
    tokens, a, chunk_states = residuals
    T = tokens.u.shape[1]
    chunks = ScanInputs(*(to_chunks(x, Q) for x in tokens))
    d_tokens, d_a, d_h = selective_scan_loop.backward(
        True, (chunks, a, chunk_states), (to_chunks(grads[0], Q), grads[1])
    )
    return (
        d_tokens._replace(
            **{name: from_chunks(x, T) for name, x in d_tokens._asdict().items() if x is not None}
        ),
        d_a,
        d_h,
    )


_scan.defvjp(_forward, _backward)


def _run_kernel(
    interpret: object, tokens: ScanInputs, a: Float[Array, "N C"], h: Float[Array, "B N C"]
) -> tuple[Float[Array, "B T C"], Float[Array, "B M N C"]]:
    """Returns y, and the state after each chunk."""
    from jax.experimental.pallas import mosaic_gpu as plgpu  # a slow import

    (B, T, C), N, M = tokens.u.shape, a.shape[0], tokens.u.shape[1] // Q
    # A copy to shared memory needs a multiple of 128 bytes, so that resets are as wide as b.
    keep = jnp.broadcast_to(1 - tokens.reset.astype(h.dtype)[..., None], tokens.b.shape)
    run = plgpu.kernel(
        _kernel,
        out_type=(
            jax.ShapeDtypeStruct((B, T, C), h.dtype),
            jax.ShapeDtypeStruct((B, M, N, C), h.dtype),
        ),
        grid=(B, C // THREADS),
        grid_names=("row", "block"),
        interpret=interpret,
    )
    y, states = run(
        *(x.astype(h.dtype) for x in (tokens.u, tokens.dt, tokens.b, tokens.c, keep, a, h))
    )
    return y, states


def _kernel(u, dt, b, c, keep, a, h, y, states) -> None:  # type: ignore[no-untyped-def]
    """Scans the chunks of a row; arguments are references to whole arrays in global memory.

    The pipeline copies a chunk's inputs to shared memory while the chunk before it is computed.
    """
    import jax.experimental.pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    row, block = jax.lax.axis_index("row"), jax.lax.axis_index("block")
    threads, (N, M) = pl.ds(block * THREADS, THREADS), (a.shape[0], states.shape[1])
    decays = [a[n, threads] for n in range(N)]

    def scan_chunk(indices, u, dt, b, c, keep, numbers):  # type: ignore[no-untyped-def]
        (m,) = indices

        def step(t: Array, numbers: tuple[Array, ...]) -> tuple[Array, ...]:
            dt_t, delta_u, y_t = dt[0, t], dt[0, t] * u[0, t], 0.0
            next_numbers = []
            for n, number in enumerate(numbers):
                deltaA = jnp.exp(dt_t * decays[n])
                next_numbers.append(deltaA * (keep[0, t, n] * number) + delta_u * b[0, t, n])
                y_t = y_t + next_numbers[-1] * c[0, t, n]
            y[row, m * Q + t, threads] = y_t
            return tuple(next_numbers)

        numbers = jax.lax.fori_loop(0, Q, step, numbers)
        for n, number in enumerate(numbers):
            states[row, m, n, threads] = number
        return numbers

    channels = plgpu.BlockSpec((1, Q, THREADS), lambda m: (row, m, block))
    per_token = plgpu.BlockSpec((1, Q, N), lambda m: (row, m, 0))
    pipeline = plgpu.emit_pipeline(
        scan_chunk,
        grid=(M,),
        in_specs=[channels, channels, per_token, per_token, per_token],
        max_concurrent_steps=2,
        init_carry=tuple(h[row, n, threads] for n in range(N)),
    )
    pipeline(u, dt, b, c, keep)
