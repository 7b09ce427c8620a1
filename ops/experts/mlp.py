"""MLPs of all experts at once, each on the rows that are assigned to it.

    y = w_out act(w_in x) + b_out,   or   w_out (w_in x * act(w_gate x)) + b_out

E experts of width F read rows of width D. Rows are [E, rows, D], an equal number for each expert
(`batched`), or sorted by expert with a number for each (`blocks`, `grouped`, `ragged`); there, rows
past the sum of these numbers give 0. The sorted forms follow MegaBlocks (Gale et al.,
arXiv:2211.15841): no row is dropped, however uneven the numbers are.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# The hidden layer from the product with w_in and, if the experts are gated, with w_gate.
ActivationFn = Callable[[Array, Array | None], Array]
# Rows of one matrix product: smaller blocks read the weights more often, larger ones pad more.
BLOCK_ROWS = 256  # of `blocks`, and the least of `grouped`
MAX_GROUPED_ROWS = 4096
# Outputs and, before the activation, the hidden layer and its gate.
BlockOutputs = tuple[Array, tuple[Array, Array | None]]


class ExpertWeights(NamedTuple):
    """Weights of all experts; None where the experts have no gate or no biases."""

    w_in: Float[Array, "E D F"]
    w_gate: Float[Array, "E D F"] | None
    w_out: Float[Array, "E F D"]
    b_in: Float[Array, "E F"] | None = None
    b_gate: Float[Array, "E F"] | None = None
    b_out: Float[Array, "E D"] | None = None


def single(
    activation: ActivationFn, x: Float[Array, "rows D"], w: ExpertWeights
) -> Float[Array, "rows D"]:
    """Computes one expert, whose weights `w` have no expert axis."""
    return _add_bias(_hidden(activation, _pre_activation(x, w)) @ w.w_out, w.b_out)


def batched(
    activation: ActivationFn, x: Float[Array, "E rows D"], w: ExpertWeights
) -> Float[Array, "E rows D"]:
    """Computes all experts on an equal number of rows each."""
    return jax.vmap(functools.partial(single, activation))(x, w)


def ragged(
    activation: ActivationFn, x: Float[Array, "rows D"], sizes: Int[Array, " E"], w: ExpertWeights
) -> Float[Array, "rows D"]:
    """Computes sorted rows by `jax.lax.ragged_dot`, which is a kernel on TPUs.

    XLA:CPU and XLA:GPU multiply every row by every expert's weights.
    """
    rows, ends = jnp.arange(x.shape[0]), jnp.cumsum(sizes)
    is_assigned = rows[:, None] < ends[-1]
    expert = jnp.minimum(jnp.searchsorted(ends, rows, side="right"), sizes.shape[0] - 1)

    def linear(x: Array, matrices: Array, biases: Array | None) -> Array:
        y = jax.lax.ragged_dot(x, matrices, sizes)
        return _add_bias(y, None if biases is None else biases[expert])

    x = jnp.where(is_assigned, x, 0)
    gate = None if w.w_gate is None else linear(x, w.w_gate, w.b_gate)
    h = jnp.where(is_assigned, _hidden(activation, (linear(x, w.w_in, w.b_in), gate)), 0)
    return jnp.where(is_assigned, linear(h, w.w_out, w.b_out), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blocks(
    activation: ActivationFn, x: Float[Array, "rows D"], sizes: Int[Array, " E"], w: ExpertWeights
) -> Float[Array, "rows D"]:
    """Computes sorted rows in a loop over experts, with an inner loop over the expert's row blocks.

    An expert's last block may extend into the rows of the next expert, which then overwrites them.
    """
    return _blocks_forward(activation, x, sizes, w)[0]


def _blocks_forward(activation: ActivationFn, x: Array, sizes: Array, w: ExpertWeights) -> tuple:
    block, (rows, D), F = _block_rows(x), x.shape, w.w_in.shape[2]
    padded = _pad_rows(x, block)
    starts = jnp.cumsum(sizes) - sizes

    def expert_step(
        outputs: BlockOutputs, expert: tuple[Array, Array, ExpertWeights]
    ) -> tuple[BlockOutputs, None]:
        first_row, size, w = expert

        def block_step(i: Array, outputs: BlockOutputs) -> BlockOutputs:
            start, mask = _block_start_and_mask(first_row, size, i, block)
            x = jnp.where(mask, _slice_rows(padded, start, block), 0)
            pre_activation = _pre_activation(x, w)
            y = _add_bias(_hidden(activation, pre_activation) @ w.w_out, w.b_out)
            new = jnp.where(mask, y, 0), pre_activation
            return jax.tree.map(lambda out, rows: _write_rows(out, rows, start), outputs, new)

        return jax.lax.fori_loop(0, -(-size // block), block_step, outputs), None

    gate = None if w.w_gate is None else jnp.zeros((rows + block, F), x.dtype)
    zeros = jnp.zeros((rows + block, D), x.dtype), (jnp.zeros((rows + block, F), x.dtype), gate)
    (y, pre_activation), _ = jax.lax.scan(expert_step, zeros, (starts, sizes, w))
    return y[:rows], (x, sizes, w, pre_activation)


def _blocks_backward(activation: ActivationFn, residuals: tuple, d_y: Array) -> tuple:
    x, sizes, w, pre_activation = residuals
    block, (rows, D) = _block_rows(x), x.shape
    x, d_y = _pad_rows(x, block), _pad_rows(d_y, block)
    starts = jnp.cumsum(sizes) - sizes

    def expert_step(
        d_x: Array, expert: tuple[Array, Array, ExpertWeights]
    ) -> tuple[Array, ExpertWeights]:
        first_row, size, w = expert

        def block_step(i: Array, carry: tuple[Array, ExpertWeights]) -> tuple[Array, ExpertWeights]:
            d_x, sums = carry
            start, mask = _block_start_and_mask(first_row, size, i, block)
            block_pre = jax.tree.map(lambda a: _slice_rows(a, start, block), pre_activation)
            block_x, block_d_y = (
                jnp.where(mask, _slice_rows(a, start, block), 0) for a in (x, d_y)
            )
            block_d_x, d_w = _block_gradients(activation, block_x, block_pre, block_d_y, w)
            return _write_rows(d_x, block_d_x, start), jax.tree.map(jnp.add, sums, d_w)

        wide = jnp.promote_types(x.dtype, jnp.float32)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, wide), w)
        d_x, sums = jax.lax.fori_loop(0, -(-size // block), block_step, (d_x, zeros))
        return d_x, jax.tree.map(lambda a, like: a.astype(like.dtype), sums, w)

    d_x, d_w = jax.lax.scan(expert_step, jnp.zeros((rows + block, D), x.dtype), (starts, sizes, w))
    return d_x[:rows], None, d_w


blocks.defvjp(_blocks_forward, _blocks_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def grouped(
    activation: ActivationFn, x: Float[Array, "rows D"], sizes: Int[Array, " E"], w: ExpertWeights
) -> Float[Array, "rows D"]:
    """Computes sorted rows in one loop over the row blocks of all experts.

    The number of its turns is known to the compiler: GPUs would wait for the host before each turn
    of a loop that runs as often as the data says. The turns beyond the last block write zeros into
    rows that no expert has.
    """
    return _grouped_forward(activation, x, sizes, w)[0]


def _grouped_forward(activation: ActivationFn, x: Array, sizes: Array, w: ExpertWeights) -> tuple:
    block, (rows, D), F = _grouped_rows(x, sizes), x.shape, w.w_in.shape[2]
    padded = _pad_rows(x, block)

    def step(outputs: BlockOutputs, group: tuple[Array, Array, Array]) -> tuple[BlockOutputs, None]:
        expert, start, mask = group
        expert_w = jax.tree.map(lambda a: a[expert], w)
        pre_activation = _pre_activation(
            jnp.where(mask, _slice_rows(padded, start, block), 0), expert_w
        )
        y = _add_bias(_hidden(activation, pre_activation) @ expert_w.w_out, expert_w.b_out)
        new = jnp.where(mask, y, 0), pre_activation
        return jax.tree.map(lambda out, rows: _write_rows(out, rows, start), outputs, new), None

    gate = None if w.w_gate is None else jnp.zeros((rows + block, F), x.dtype)
    zeros = jnp.zeros((rows + block, D), x.dtype), (jnp.zeros((rows + block, F), x.dtype), gate)
    (y, pre_activation), _ = jax.lax.scan(step, zeros, _groups(sizes, rows, block))
    return y[:rows], (x, sizes, w, pre_activation)


def _grouped_backward(activation: ActivationFn, residuals: tuple, d_y: Array) -> tuple:
    x, sizes, w, pre_activation = residuals
    block, (rows, D) = _grouped_rows(x, sizes), x.shape
    x, d_y = _pad_rows(x, block), _pad_rows(d_y, block)

    def step(
        carry: tuple[Array, ExpertWeights], group: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, ExpertWeights], None]:
        (d_x, sums), (expert, start, mask) = carry, group
        expert_w = jax.tree.map(lambda a: a[expert], w)
        block_pre = jax.tree.map(lambda a: _slice_rows(a, start, block), pre_activation)
        block_x, block_d_y = (jnp.where(mask, _slice_rows(a, start, block), 0) for a in (x, d_y))
        block_d_x, d_w = _block_gradients(activation, block_x, block_pre, block_d_y, expert_w)
        sums = jax.tree.map(lambda total, d: total.at[expert].add(d), sums, d_w)
        return (_write_rows(d_x, block_d_x, start), sums), None

    wide = jnp.promote_types(x.dtype, jnp.float32)
    zeros = (
        jnp.zeros((rows + block, D), x.dtype),
        jax.tree.map(lambda a: jnp.zeros(a.shape, wide), w),
    )
    (d_x, sums), _ = jax.lax.scan(step, zeros, _groups(sizes, rows, block))
    return d_x[:rows], None, jax.tree.map(lambda a, like: a.astype(like.dtype), sums, w)


grouped.defvjp(_grouped_forward, _grouped_backward)


def _groups(
    sizes: Int[Array, " E"], rows: int, block: int
) -> tuple[Int[Array, " n"], Int[Array, " n"], Bool[Array, "n block 1"]]:
    """Returns the expert and the first row of each block, and which of its rows are the expert's.

    There are as many blocks as the most uneven distribution of the rows needs.
    """
    E = sizes.shape[0]
    blocks_per_expert = -(-sizes // block)
    ends = jnp.cumsum(blocks_per_expert)
    number = jnp.arange(rows // block + E)
    expert = jnp.minimum(jnp.searchsorted(ends, number, side="right"), E - 1)
    in_expert = number - (ends - blocks_per_expert)[expert]
    first_row = (jnp.cumsum(sizes) - sizes)[expert]
    start, mask = jax.vmap(functools.partial(_block_start_and_mask, block=block))(
        first_row, sizes[expert], in_expert
    )
    return expert, jnp.minimum(start, rows), mask


def _grouped_rows(x: Array, sizes: Array) -> int:
    """Returns the rows of a block of `grouped`: a quarter of what an expert has on average."""
    rows, E = x.shape[0], sizes.shape[0]
    quarter = 2 ** int(math.log2(max(1, rows // (4 * E))))
    return max(1, min(rows, max(BLOCK_ROWS, min(quarter, MAX_GROUPED_ROWS))))


def _block_gradients(
    activation: ActivationFn, x: Array, pre_activation: tuple, d_y: Array, w: ExpertWeights
) -> tuple:
    """Returns d_x and d_w of a block, with sums in at least float32."""
    matmul = functools.partial(
        jnp.matmul, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32)
    )
    h, pull_hidden = jax.vjp(functools.partial(_hidden, activation), pre_activation)
    ((d_in, d_gate),) = pull_hidden(d_y @ w.w_out.T)
    d_x = d_in @ w.w_in.T
    if w.w_gate is not None:
        d_x = d_x + d_gate @ w.w_gate.T
    d_w = ExpertWeights(
        matmul(x.T, d_in),
        None if d_gate is None else matmul(x.T, d_gate),
        matmul(h.T, d_y),
        *(
            None if b is None else jnp.sum(g, axis=0, dtype=jnp.promote_types(g.dtype, jnp.float32))
            for b, g in zip(w[3:], (d_in, d_gate, d_y), strict=True)
        ),
    )
    return d_x, d_w


def _pre_activation(x: Array, w: ExpertWeights) -> tuple[Array, Array | None]:
    """Returns the inner product and, if the experts are gated, the gate, before the activation."""
    gate = None if w.w_gate is None else _add_bias(x @ w.w_gate, w.b_gate)
    return _add_bias(x @ w.w_in, w.b_in), gate


def _hidden(activation: ActivationFn, pre_activation: tuple[Array, Array | None]) -> Array:
    return activation(*pre_activation)


def _add_bias(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias


def _block_rows(x: Array) -> int:
    return max(1, min(BLOCK_ROWS, x.shape[0]))


def _block_start_and_mask(
    first_row: Array, size: Array, i: Array, block: int
) -> tuple[Array, Array]:
    """Returns the first row of an expert's block i, and which of the block's rows are its own."""
    return first_row + i * block, (i * block + jnp.arange(block) < size)[:, None]


def _pad_rows(x: Array, rows: int) -> Array:
    """Appends `rows` rows of zeros, so that a block that starts at the last row is not cut."""
    return jnp.pad(x, ((0, rows), (0, 0)))


def _slice_rows(x: Array, start: Array, rows: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, rows)


def _write_rows(x: Array, rows: Array, start: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, rows, start, 0)
