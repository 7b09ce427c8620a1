"""Rows sent to other devices arrive in order and their gradients return, by both collectives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops.experts import ragged_all_to_all as exchanges
from ops.experts.ragged_all_to_all import ragged_all_to_all

N, D, ROWS, MAX_ROWS = 4, 3, 7, 9
COUNTS = np.array([[0, 3, 1, 2], [2, 0, 0, 0], [1, 1, 4, 1], [0, 5, 0, 0]])


def by_definition(x, out, starts, sizes, offsets, received, *, axis_name):
    """Computes what the documentation of `jax.lax.ragged_all_to_all` defines, after all_gather."""
    gathered = [jax.lax.all_gather(a, axis_name) for a in (x, starts, sizes, offsets)]
    index = jax.lax.axis_index(axis_name)
    for source in range(N):
        rows, start, size, offset = (a[source] for a in gathered)
        for i in range(rows.shape[0]):
            row = rows[jnp.minimum(start[index] + i, rows.shape[0] - 1)]
            is_sent = i < jnp.minimum(size[index], received[source])
            position = jnp.where(is_sent, offset[index] + i, out.shape[0])
            out = out.at[position].set(row, mode="drop")
    return out


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_rows_arrive_in_order_and_gradients_return(platform, monkeypatch):
    monkeypatch.setattr(exchanges, "platform", lambda: platform)
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", by_definition)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, ROWS, D)).astype(np.float32)
    cotangents = rng.normal(size=(N, MAX_ROWS, D)).astype(np.float32)
    mesh = jax.make_mesh((N,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("expert")

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False
    )
    def run(x, cotangent):
        send = functools.partial(
            ragged_all_to_all, counts=jnp.array(COUNTS), max_rows=MAX_ROWS, axis="expert"
        )
        y, pull = jax.vjp(send, x[0])
        return y[None], pull(cotangent[0])[0][None]

    y, d = run(x, cotangents)
    expected, d_expected = np.zeros((N, MAX_ROWS, D)), np.zeros_like(x)
    for j in range(N):
        position = 0
        for i in range(N):
            first = COUNTS[i, :j].sum()
            for row in range(first, first + COUNTS[i, j]):
                expected[j, position], d_expected[i, row] = x[i, row], cotangents[j, position]
                position += 1
    np.testing.assert_array_equal(y, expected.astype(np.float32))
    np.testing.assert_array_equal(d, d_expected)
