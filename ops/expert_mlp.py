"""Many small MLPs at once: each expert's on its own rows.

    y = w_out act(w_in x) + b_out,   or   w_out (w_in x * act(w_gate x)) + b_out

Rows come as [E, S, D], an equal number for each expert (`batched`), or sorted by expert with a
size for each (`blocks`, `ragged`); there, rows past the sum of the sizes give 0. The sorted forms
follow MegaBlocks (Gale et al., arXiv:2211.15841): nothing is dropped, however uneven the sizes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Activation = Callable[[Array], Array]
BLOCK = 256  # rows of one matrix product: fewer read weights too often, more pad too much


class Weights(NamedTuple):
    """Of all experts; None: not there."""

    w_in: Float[Array, "E D F"]
    w_gate: Float[Array, "E D F"] | None
    w_out: Float[Array, "E F D"]
    b_in: Float[Array, "E F"] | None = None
    b_gate: Float[Array, "E F"] | None = None
    b_out: Float[Array, "E D"] | None = None


def single(activation: Activation, x: Float[Array, "N D"], w: Weights) -> Float[Array, "N D"]:
    """One expert, whose `w` have no expert axis."""
    return _plus(_hidden(activation, _inside(x, w)) @ w.w_out, w.b_out)


def batched(activation: Activation, x: Float[Array, "E S D"], w: Weights) -> Float[Array, "E S D"]:
    """All experts, as many rows each."""
    return jax.vmap(functools.partial(single, activation))(x, w)


def ragged(
    activation: Activation, x: Float[Array, "R D"], sizes: Int[Array, " E"], w: Weights
) -> Float[Array, "R D"]:
    """By `jax.lax.ragged_dot`, a kernel on TPU; elsewhere it computes every expert on every row."""
    rows, ends = jnp.arange(x.shape[0]), jnp.cumsum(sizes)
    real = rows[:, None] < ends[-1]
    owner = jnp.minimum(jnp.searchsorted(ends, rows, side="right"), sizes.shape[0] - 1)

    def product(x: Array, matrices: Array, biases: Array | None) -> Array:
        y = jax.lax.ragged_dot(x, matrices, sizes)
        return _plus(y, None if biases is None else biases[owner])

    x = jnp.where(real, x, 0)
    gate = None if w.w_gate is None else product(x, w.w_gate, w.b_gate)
    h = jnp.where(real, _hidden(activation, (product(x, w.w_in, w.b_in), gate)), 0)
    return jnp.where(real, product(h, w.w_out, w.b_out), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blocks(
    activation: Activation, x: Float[Array, "R D"], sizes: Int[Array, " E"], w: Weights
) -> Float[Array, "R D"]:
    """A loop over experts, in it one over as many blocks of rows as the expert has.

    A block may reach into the rows of the next expert, which then writes over what it left there.
    """
    return _blocks_forward(activation, x, sizes, w)[0]


def _blocks_forward(activation: Activation, x: Array, sizes: Array, w: Weights) -> tuple:
    M, (R, D), F = _size(x), x.shape, w.w_in.shape[2]
    padded = _longer(x, M)
    starts = jnp.cumsum(sizes) - sizes

    def expert(kept: Any, turn: tuple[Array, Array, Weights]) -> tuple[Any, None]:
        start, size, own = turn

        def block(i: Array, kept: Any) -> Any:
            at, real = _where(start, size, i, M)
            inside = _inside(jnp.where(real, _cut(padded, at, M), 0), own)
            y = _plus(_hidden(activation, inside) @ own.w_out, own.b_out)
            new = jnp.where(real, y, 0), inside
            return jax.tree.map(lambda all, part: _put(all, part, at), kept, new)

        return jax.lax.fori_loop(0, -(-size // M), block, kept), None

    gate = None if w.w_gate is None else jnp.zeros((R + M, F), x.dtype)
    zeros = jnp.zeros((R + M, D), x.dtype), (jnp.zeros((R + M, F), x.dtype), gate)
    (y, inside), _ = jax.lax.scan(expert, zeros, (starts, sizes, w))
    return y[:R], (x, sizes, w, inside)


def _blocks_backward(activation: Activation, kept: tuple, d_y: Array) -> tuple:
    x, sizes, w, inside = kept
    M, (R, D) = _size(x), x.shape
    x, d_y = _longer(x, M), _longer(d_y, M)
    starts = jnp.cumsum(sizes) - sizes

    def expert(d_x: Array, turn: tuple[Array, Array, Weights]) -> tuple[Array, Weights]:
        start, size, own = turn

        def block(i: Array, carry: tuple[Array, Weights]) -> tuple[Array, Weights]:
            d_x, sums = carry
            at, real = _where(start, size, i, M)
            here = jax.tree.map(lambda a: _cut(a, at, M), inside)
            rows, d = (jnp.where(real, _cut(a, at, M), 0) for a in (x, d_y))
            d_part, d_own = _slopes(activation, rows, here, d, own)
            return _put(d_x, d_part, at), jax.tree.map(jnp.add, sums, d_own)

        wide = jnp.promote_types(x.dtype, jnp.float32)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, wide), own)
        d_x, sums = jax.lax.fori_loop(0, -(-size // M), block, (d_x, zeros))
        return d_x, jax.tree.map(lambda a, like: a.astype(like.dtype), sums, own)

    d_x, d_w = jax.lax.scan(expert, jnp.zeros((R + M, D), x.dtype), (starts, sizes, w))
    return d_x[:R], None, d_w


blocks.defvjp(_blocks_forward, _blocks_backward)


def _slopes(activation: Activation, x: Array, inside: tuple, d: Array, w: Weights) -> tuple:
    """d x and d w of a block, from what came before the activation; sums in at least float32."""
    product = functools.partial(
        jnp.matmul, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32)
    )
    h, pull = jax.vjp(functools.partial(_hidden, activation), inside)
    ((d_in, d_gate),) = pull(d @ w.w_out.T)
    d_x = d_in @ w.w_in.T
    if w.w_gate is not None:
        d_x = d_x + d_gate @ w.w_gate.T
    sums = Weights(
        product(x.T, d_in),
        None if d_gate is None else product(x.T, d_gate),
        product(h.T, d),
        *(
            None if b is None else jnp.sum(g, axis=0, dtype=jnp.promote_types(g.dtype, jnp.float32))
            for b, g in zip(w[3:], (d_in, d_gate, d), strict=True)
        ),
    )
    return d_x, sums


def _inside(x: Array, w: Weights) -> tuple[Array, Array | None]:
    """What the activation sees: the inner product and, if gated, the gate."""
    gate = None if w.w_gate is None else _plus(x @ w.w_gate, w.b_gate)
    return _plus(x @ w.w_in, w.b_in), gate


def _hidden(activation: Activation, inside: tuple[Array, Array | None]) -> Array:
    h, gate = inside
    return activation(h) if gate is None else h * activation(gate)


def _plus(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias


def _size(x: Array) -> int:
    return max(1, min(BLOCK, x.shape[0]))


def _where(start: Array, size: Array, i: Array, M: int) -> tuple[Array, Array]:
    """The first row of an expert's block i, and which of its rows are the expert's."""
    return start + i * M, (i * M + jnp.arange(M) < size)[:, None]


def _longer(x: Array, rows: int) -> Array:
    """`rows` of zeros behind: a block that starts at the last row stays inside."""
    return jnp.pad(x, ((0, rows), (0, 0)))


def _cut(x: Array, at: Array, rows: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, at, rows)


def _put(x: Array, part: Array, at: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part, at, 0)
