"""Tests of context parallelism: every mixer treats a row on several devices as one row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_contracts import check_gradients

from arch import MIXERS, SequenceInfo
from arch.block import BlockConfig
from training import mesh as meshes

T = 24
REMATERIALISED = "Involuntary full rematerialization"
CASES = [
    *((m, {}) if m == "mamba2" else pytest.param(m, {}, marks=pytest.mark.slow) for m in MIXERS),
    pytest.param(
        *("attention", tiny.attention(value_residual=True) | {"block": BlockConfig(canon="ABCD")}),
        marks=pytest.mark.slow,
    ),
    ("attention", tiny.attention(heads=4, position_encoding="relative", kv_heads=2, softcap=20.0)),
    pytest.param(
        *("attention", tiny.attention(heads=4, position_encoding="alibi", window=5)),
        marks=pytest.mark.slow,
    ),
]


def rows() -> SequenceInfo:
    """Returns documents that end within a device's tokens, at their edge, or span three devices."""
    parts = [tiny.packed(list(sizes), T) for sizes in ((5, 7, 12), (2, 19), (24,), (6, 6, 1, 9))]
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


@pytest.mark.parametrize(("mixer", "changes"), CASES)
def test_a_row_on_four_devices_is_one_row(mixer, changes, capfd):
    """Values and gradients agree, with resets at documents and states passed between devices.

    One device runs the layers one after another; the mesh scans and rematerializes them.
    """
    model, ids, seq = tiny.model(tiny.config(mixer, **changes)), tiny.tokens(4, T), rows()

    def loss(model, ids, seq):
        hidden = model(ids, seq)[0]
        return jnp.mean(jnp.where(seq.segment_ids[..., None] != 0, jnp.sin(hidden), 0))

    run = jax.jit(jax.value_and_grad(loss))
    unrolled = tiny.replaced(model, remat="dots", scan=False)
    value, grads = run(unrolled, ids, seq)
    model = tiny.replaced(model, remat="full")
    capfd.readouterr()
    mesh = meshes.make_mesh(meshes.MeshConfig(data=1, context=4, model=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(model, meshes.param_shardings(mesh, model))
        other, others = run(placed, *jax.device_put((ids, seq), meshes.batch_sharding(mesh)))
    np.testing.assert_allclose(value, other, rtol=1e-5)
    check_gradients(grads, others)
    assert REMATERIALISED not in capfd.readouterr().err
