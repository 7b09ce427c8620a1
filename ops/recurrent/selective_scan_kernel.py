"""The selective scan as Pallas kernels for TPUs: one for each pass, with the state on the chip.

`ops/recurrent/selective_scan.py` has the equations. A program of the grid owns a row and a block of
channels, and takes its chunks one after the other. The state [N block] stays in the chip's memory;
of HBM a pass reads its inputs and writes its outputs once, and the states before each chunk. The
backward pass recomputes a chunk's states from these (section 3.3.2 of arXiv:2312.00752).

Registers of a TPU hold 8 x 128 numbers. Channels lie along the 128 lanes, the N numbers of a state
along the 8 sublanes. b and c have tokens along the lanes, so that the column of a token is taken by
a mask: registers cannot be indexed along lanes.

B rows, T tokens, C channels, N numbers of state per channel, M chunks of Q tokens.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from ops.recurrent import tpu_kernel
from ops.recurrent.tpu_kernel import LANES

MAX_BLOCK = 512  # channels of a block; all states of a chunk in the backward pass take 4 MiB then


def why_not(num_channels: int, dtype: DTypeLike) -> str | None:
    """Returns why the kernels cannot run states of `dtype` on this device's channels, or None."""
    if num_channels % LANES:
        return f"{num_channels} channels per device are no multiple of {LANES}"
    return tpu_kernel.why_not_here(dtype)


def scan_rows(
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "N C"],
    b: Float[Array, "B T N"],
    c: Float[Array, "B T N"],
    reset: Bool[Array, "B T"],
    h: Float[Array, "B N C"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B T C"], Float[Array, "B N C"]]:
    """Returns y and the state after the last token; see `ops.recurrent.selective_scan`.

    `reset` is True at the first token of a document. `interpret` interprets the kernels instead of
    compiling them, which works on any platform.
    """
    T = u.shape[1]

    def pad(x: Array) -> Array:
        widths = [(0, 0), (0, -T % LANES), *[(0, 0)] * (x.ndim - 2)]
        return jnp.pad(x.astype(h.dtype), widths)

    keep = 1 - pad(reset[..., None])
    columns = (jnp.swapaxes(pad(x), 1, 2) for x in (b, c))
    y, last = _scan(interpret, pad(u), pad(dt), a, *columns, jnp.swapaxes(keep, 1, 2), h)
    return y[:, :T].astype(u.dtype), last


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(
    interpret: bool,
    u: Float[Array, "B T C"],
    dt: Float[Array, "B T C"],
    a: Float[Array, "N C"],
    b: Float[Array, "B N T"],
    c: Float[Array, "B N T"],
    keep: Float[Array, "B 1 T"],
    h: Float[Array, "B N C"],
) -> tuple[Array, Array]:
    """Scans tokens; `keep` is 0 at the first token of a document, else 1."""
    return _forward(interpret, u, dt, a, b, c, keep, h)[0]


def _forward(interpret: bool, *inputs: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    u, a = inputs[0], inputs[2]
    (B, T, C), N, M = u.shape, a.shape[0], u.shape[1] // LANES
    specs = _BlockSpecs(B, T, C, N, lambda m: m)
    y, chunk_states, last = specs.call(
        _forward_kernel,
        (*(specs.tokens,) * 2, specs.a, *(specs.columns,) * 2, specs.keep, specs.state),
        (specs.tokens, specs.chunk_state, specs.state),
        ((B, T, C), (B, M, N, C), (B, N, C)),
        [(N, specs.width)],
        interpret,
    )(*inputs)
    return (y, last), (*inputs[:-1], chunk_states)


def _forward_kernel(u, dt, a, b, c, keep, h, y, chunk_state, last, state) -> None:  # type: ignore[no-untyped-def]
    """Scans a chunk; arguments are references to blocks of the arrays, `state` is on the chip."""
    import jax.experimental.pallas as pl

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        state[...] = h[0]

    chunk_state[0, 0] = state[...]

    def step(t: Array, h: Array) -> Array:
        h, _ = _next_state(t, h, u, dt, a, b, keep)
        y[0, pl.ds(t, 1)] = jnp.sum(h * _column(c, t), axis=0, keepdims=True)
        return h

    state[...] = jax.lax.fori_loop(0, LANES, step, state[...])
    last[0] = state[...]


def _backward(
    interpret: bool, residuals: tuple[Array, ...], grads: tuple[Array, Array]
) -> tuple[Array | None, ...]:
    u, _, a, b, _, keep, chunk_states = residuals
    (B, T, C), N, M = u.shape, a.shape[0], u.shape[1] // LANES
    specs = _BlockSpecs(B, T, C, N, lambda m: M - 1 - m)  # from the last chunk to the first
    blocks = C // specs.width
    d_u, d_dt, d_b, d_c, d_a, d_h = specs.call(
        _backward_kernel,
        (
            *(*(specs.tokens,) * 2, specs.a, *(specs.columns,) * 2, specs.keep),
            *(specs.chunk_state, specs.tokens, specs.state),
        ),
        (*(specs.tokens,) * 2, *(specs.block_columns,) * 2, *(specs.state,) * 2),
        (*((B, T, C),) * 2, *((B, blocks, N, T),) * 2, *((B, N, C),) * 2),
        [(N, specs.width), (LANES, N, specs.width)],
        interpret,
    )(*residuals, *grads)
    return d_u, d_dt, d_a.sum(0), d_b.sum(1), d_c.sum(1), jnp.zeros_like(keep), d_h


_scan.defvjp(_forward, _backward)


def _backward_kernel(  # type: ignore[no-untyped-def]
    u, dt, a, b, c, keep, chunk_state, d_y, d_last, d_u, d_dt, d_b, d_c, d_a, d_h, d_state, states
) -> None:
    """Recomputes the states of a chunk, then scans it in reverse; `d_state` is on the chip."""
    import jax.experimental.pallas as pl

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        d_state[...] = d_last[0]
        d_a[0] = jnp.zeros_like(d_a[0])

    def recompute(t: Array, h: Array) -> Array:
        states[t] = h * _scalar(keep, t)
        return _next_state(t, h, u, dt, a, b, keep)[0]

    jax.lax.fori_loop(0, LANES, recompute, chunk_state[0, 0])
    lanes = jax.lax.broadcasted_iota(jnp.int32, b.shape[1:], 1)

    def step(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        t = LANES - 1 - i
        d_h, d_a, d_b, d_c = sums
        u_t, dt_t, d_y_t = (x[0, pl.ds(t, 1)] for x in (u, dt, d_y))
        h_prev = states[t]
        h, deltaA = _next_state(t, h_prev, u, dt, a, b, None)
        d_h = d_h + _column(c, t) * d_y_t
        d_log_deltaA = d_h * deltaA * h_prev
        d_delta_u = jnp.sum(d_h * _column(b, t), axis=0, keepdims=True)
        d_u[0, pl.ds(t, 1)] = d_delta_u * dt_t
        d_a_dt = jnp.sum(d_log_deltaA * a[...], axis=0, keepdims=True)
        d_dt[0, pl.ds(t, 1)] = d_a_dt + d_delta_u * u_t
        d_b_t, d_c_t = (jnp.sum(z, axis=1, keepdims=True) for z in (d_h * (dt_t * u_t), h * d_y_t))
        d_b, d_c = jnp.where(lanes == t, d_b_t, d_b), jnp.where(lanes == t, d_c_t, d_c)
        return deltaA * d_h * _scalar(keep, t), d_a + d_log_deltaA * dt_t, d_b, d_c

    zeros = jnp.zeros(b.shape[1:], d_state.dtype)
    sums = jax.lax.fori_loop(0, LANES, step, (d_state[...], d_a[0], zeros, zeros))
    d_state[...], d_a[0], d_b[0, 0], d_c[0, 0] = sums
    d_h[0] = d_state[...]


def _next_state(t, h, u, dt, a, b, keep) -> tuple[Array, Array]:  # type: ignore[no-untyped-def]
    """Returns the state after token t, and its decay deltaA; `keep` None: h was reset already."""
    import jax.experimental.pallas as pl

    u_t, dt_t = u[0, pl.ds(t, 1)], dt[0, pl.ds(t, 1)]
    deltaA = jnp.exp(dt_t * a[...])
    h = h if keep is None else h * _scalar(keep, t)
    return deltaA * h + (dt_t * u_t) * _column(b, t), deltaA


def _column(x, t: Array) -> Array:  # type: ignore[no-untyped-def]
    """Returns the column [N 1] of token t of a block [1 N Q]."""
    lanes = jax.lax.broadcasted_iota(jnp.int32, x.shape[1:], 1)
    return jnp.sum(jnp.where(lanes == t, x[0], 0), axis=1, keepdims=True)


_scalar = _column  # of a block [1 1 Q]: an array [1 1]


class _BlockSpecs:
    """The blocks of the arrays for a grid of rows, blocks of channels, and chunks."""

    def __init__(self, B: int, T: int, C: int, N: int, chunk):  # type: ignore[no-untyped-def]
        import jax.experimental.pallas as pl  # a slow import

        spec = pl.BlockSpec
        W = self.width = next(w for w in range(MAX_BLOCK, 0, -LANES) if C % w == 0)
        self._grid = (B, C // W, T // LANES)
        self.tokens = spec((1, LANES, W), lambda i, j, m: (i, chunk(m), j))
        self.columns = spec((1, N, LANES), lambda i, j, m: (i, 0, chunk(m)))
        self.block_columns = spec((1, 1, N, LANES), lambda i, j, m: (i, j, 0, chunk(m)))
        self.keep = spec((1, 1, LANES), lambda i, j, m: (i, 0, chunk(m)))
        self.a = spec((N, W), lambda i, j, m: (0, j))
        self.state = spec((1, N, W), lambda i, j, m: (i, 0, j))
        self.chunk_state = spec((1, 1, N, W), lambda i, j, m: (i, chunk(m), 0, j))

    def call(self, kernel, in_specs, out_specs, out_shapes, scratch, interpret):  # type: ignore[no-untyped-def]
        """Returns the kernel as a function of arrays; all arrays are float32."""
        outputs = [(shape, jnp.float32) for shape in out_shapes]
        return tpu_kernel.call(kernel, self._grid, in_specs, out_specs, outputs, scratch, interpret)
