"""Rows to other devices of a mesh axis, as many to each as there are for it.

    out = the rows that are for me: those of device 0, then those of device 1, ..; then zeros

TPUs and GPUs send what there is (`jax.lax.ragged_all_to_all`). XLA for CPUs cannot: there every
device sends every other as much as it might have to.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ops.placement import platform


def exchange(
    x: Float[Array, "R D"], counts: Int[Array, "N N"], places: int, axis: str
) -> Float[Array, "places D"]:
    """Inside a shard_map over `axis`, of N devices.

    `x` begins with the rows for device 0, then come those for 1, ..; `counts[i, j]` says how many
    device i has for j, the same on all devices, and no device may get more than `places`. With
    `counts.T` the rows go back, as gradients do.
    """
    return _exchange(x, counts, x.shape[0], places, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _exchange(x: Array, counts: Array, rows: int, places: int, axis: str) -> Array:
    send = _padded if platform() == "cpu" else _ragged
    return send(x, counts, places, axis)


def _forward(x: Array, counts: Array, rows: int, places: int, axis: str) -> tuple[Array, Array]:
    return _exchange(x, counts, rows, places, axis), counts


def _backward(rows: int, places: int, axis: str, counts: Array, d: Array) -> tuple[Array, None]:
    return _exchange(d, counts.T, places, rows, axis), None


_exchange.defvjp(_forward, _backward)


def _ragged(x: Array, counts: Array, places: int, axis: str) -> Array:
    me, out = jax.lax.axis_index(axis), jnp.zeros((places, x.shape[1]), x.dtype)
    there = _starts(counts)[me]  # where my rows begin on each device
    sizes = counts[me], there, counts[:, me]
    return jax.lax.ragged_all_to_all(x, out, _starts(counts[me]), *sizes, axis_name=axis)


def _padded(x: Array, counts: Array, places: int, axis: str) -> Array:
    (R, D), me, N = x.shape, jax.lax.axis_index(axis), counts.shape[0]
    most, mine, got = min(R, places), counts[me], counts[:, me]
    at, real = _starts(mine)[:, None] + jnp.arange(most), jnp.arange(most) < mine[:, None]
    blocks = x.at[jnp.where(real, at, R)].get(mode="fill", fill_value=0)
    blocks = jax.lax.all_to_all(blocks, axis, split_axis=0, concat_axis=0, tiled=True)
    place, ends = jnp.arange(places), jnp.cumsum(got)
    source = jnp.searchsorted(ends, place, side="right")
    row = source * most + place - (ends - got)[jnp.minimum(source, N - 1)]
    row = jnp.where(place < ends[-1], row, N * most)
    return blocks.reshape(N * most, D).at[row].get(mode="fill", fill_value=0)


def _starts(sizes: Array) -> Array:
    return jnp.cumsum(sizes, axis=0) - sizes
