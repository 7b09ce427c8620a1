"""Rows sent to other devices arrive in order and their gradients return, by either collective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops import exchange as exchanges
from ops.exchange import exchange

N, D, ROWS, PLACES = 4, 3, 7, 9
COUNTS = np.array([[0, 3, 1, 2], [2, 0, 0, 0], [1, 1, 4, 1], [0, 5, 0, 0]])


def by_the_book(x, out, starts, sizes, places, got, *, axis_name):
    """`jax.lax.ragged_all_to_all` as its documentation has it, of all that all devices have."""
    everywhere = [jax.lax.all_gather(a, axis_name) for a in (x, starts, sizes, places)]
    me = jax.lax.axis_index(axis_name)
    for source in range(N):
        rows, start, size, place = (a[source] for a in everywhere)
        for i in range(rows.shape[0]):
            row = rows[jnp.minimum(start[me] + i, rows.shape[0] - 1)]
            at = jnp.where(i < jnp.minimum(size[me], got[source]), place[me] + i, out.shape[0])
            out = out.at[at].set(row, mode="drop")
    return out


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_rows_arrive_in_order_and_gradients_return(platform, monkeypatch):
    monkeypatch.setattr(exchanges, "platform", lambda: platform)
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", by_the_book)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, ROWS, D)).astype(np.float32)
    slopes = rng.normal(size=(N, PLACES, D)).astype(np.float32)
    mesh = jax.make_mesh((N,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.P("expert")

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P, P), out_specs=P, check_vma=False)
    def run(x, slope):
        send = functools.partial(exchange, counts=jnp.array(COUNTS), places=PLACES, axis="expert")
        y, back = jax.vjp(send, x[0])
        return y[None], back(slope[0])[0][None]

    y, d = run(x, slopes)
    want, d_want = np.zeros((N, PLACES, D)), np.zeros_like(x)
    for j in range(N):
        place = 0
        for i in range(N):
            first = COUNTS[i, :j].sum()
            for row in range(first, first + COUNTS[i, j]):
                want[j, place], d_want[i, row] = x[i, row], slopes[j, place]
                place += 1
    np.testing.assert_array_equal(y, want.astype(np.float32))
    np.testing.assert_array_equal(d, d_want)
