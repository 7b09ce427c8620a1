"""All-to-all of rows along a mesh axis, with a different number of rows for each pair of devices.

    out = the rows from device 0 for this device, then those from device 1, ..; then zeros

TPUs and GPUs send exactly these rows (`jax.lax.ragged_all_to_all`). XLA has no such operation for
CPUs: there each device sends every other device the largest number of rows that it might have to.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ops.implementation import platform


def ragged_all_to_all(
    x: Float[Array, "rows D"], counts: Int[Array, "n n"], max_rows: int, axis: str
) -> Float[Array, "max_rows D"]:
    """Sends each row of `x` to its device and returns the rows that this device receives.

    Runs inside a shard_map over `axis`. A second call with `counts.T` sends the rows back; the
    backward pass does so with their gradients.

    Args:
        x: The rows for device 0, then the rows for device 1, and so on; later rows are ignored.
        counts: `counts[i, j]` rows go from device i to device j; equal on all n devices.
        max_rows: Number of rows of the result; no device may receive more.
        axis: Mesh axis of the n devices.
    """
    return _all_to_all(x, counts, x.shape[0], max_rows, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _all_to_all(x: Array, counts: Array, rows: int, max_rows: int, axis: str) -> Array:
    send = _send_padded if platform() == "cpu" else _send_ragged
    return send(x, counts, max_rows, axis)


def _forward(x: Array, counts: Array, rows: int, max_rows: int, axis: str) -> tuple[Array, Array]:
    return _all_to_all(x, counts, rows, max_rows, axis), counts


def _backward(rows: int, max_rows: int, axis: str, counts: Array, d: Array) -> tuple[Array, None]:
    return _all_to_all(d, counts.T, max_rows, rows, axis), None


_all_to_all.defvjp(_forward, _backward)


def _send_ragged(x: Array, counts: Array, max_rows: int, axis: str) -> Array:
    index, out = jax.lax.axis_index(axis), jnp.zeros((max_rows, x.shape[1]), x.dtype)
    output_offsets = _offsets(counts)[index]  # where this device's rows begin on each device
    sizes = counts[index], output_offsets, counts[:, index]
    return jax.lax.ragged_all_to_all(x, out, _offsets(counts[index]), *sizes, axis_name=axis)


def _send_padded(x: Array, counts: Array, max_rows: int, axis: str) -> Array:
    (rows, D), index, n = x.shape, jax.lax.axis_index(axis), counts.shape[0]
    size, send, receive = min(rows, max_rows), counts[index], counts[:, index]  # size of a block
    row, is_valid = _offsets(send)[:, None] + jnp.arange(size), jnp.arange(size) < send[:, None]
    blocks = x.at[jnp.where(is_valid, row, rows)].get(mode="fill", fill_value=0)
    blocks = jax.lax.all_to_all(blocks, axis, split_axis=0, concat_axis=0, tiled=True)
    position, ends = jnp.arange(max_rows), jnp.cumsum(receive)
    source = jnp.searchsorted(ends, position, side="right")
    row = source * size + position - (ends - receive)[jnp.minimum(source, n - 1)]
    row = jnp.where(position < ends[-1], row, n * size)
    return blocks.reshape(n * size, D).at[row].get(mode="fill", fill_value=0)


def _offsets(sizes: Array) -> Array:
    return jnp.cumsum(sizes, axis=0) - sizes
