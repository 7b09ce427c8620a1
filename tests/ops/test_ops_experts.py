"""Experts on routed tokens: all implementations equal a loop in float64, on all meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import ConfigError
from ops.experts import mlp as expert_mlp
from ops.experts.experts import IMPLEMENTATIONS, ExpertWeights, Routes, experts
from training import mesh as meshes

B, T, D, F, E, k = 2, 5, 3, 4, 4, 2
CAPACITY = 3


def swiglu(h, gate):
    return jax.nn.silu(h) if gate is None else h * jax.nn.silu(gate)


def arrays(seed: int = 0, gated: bool = True, rows: int = B) -> tuple:
    """Returns x, the weights of the routes, and the experts' weights."""
    rng = np.random.default_rng(seed)
    shapes = (E, D, F), (E, D, F) if gated else None, (E, F, D)
    biases = (E, F), (E, F) if gated else None, (E, D)
    w = [None if s is None else rng.normal(size=s) for s in (*shapes, *biases)]
    return rng.normal(size=(rows, T, D)), rng.random((rows, T, k)), ExpertWeights(*w)


def routed(kind: str, rows: int = B) -> np.ndarray:
    """Returns different experts for each token; id E is no expert."""
    rng = np.random.default_rng(3)
    ids = np.array([[rng.permutation(E)[:k] for _ in range(T)] for _ in range(rows)])
    if kind == "one idle":
        ids = np.where(ids == 1, 3, ids)
        ids[..., 1] = np.where(ids[..., 0] == ids[..., 1], E, ids[..., 1])
    elif kind == "all to one":
        ids[..., 0], ids[..., 1] = 2, E
    elif kind == "some dropped":
        ids[:, ::2, 1], ids[:, 1] = E, E
    elif kind == "few slots":
        for row in ids:
            for e in range(E):
                row[tuple(np.argwhere(row == e)[CAPACITY:].T)] = E
    elif kind == "nobody":
        ids[...] = E
    return ids.astype(np.int32)


def by_hand(x, weights, w: ExpertWeights, ids):
    y = np.zeros_like(x)
    for b, t, j in np.ndindex(ids.shape):
        if (e := ids[b, t, j]) < E:
            h = x[b, t] @ w.w_in[e] + w.b_in[e]
            gate = h if w.w_gate is None else x[b, t] @ w.w_gate[e] + w.b_gate[e]
            act = gate / (1 + np.exp(-gate))
            h = act if w.w_gate is None else h * act
            y[b, t] += weights[b, t, j] * (h @ w.w_out[e] + w.b_out[e])
    return y


def directions(arguments):
    """Returns three random directions for each leaf, [3 *shape]."""
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda a: rng.normal(size=(3, *a.shape)), arguments)


def slopes(function, arguments) -> list[np.ndarray]:
    """Returns central differences along the three directions of each leaf."""
    leaves, tree = jax.tree.flatten(arguments)

    def value(index, moved) -> float:
        return function(*jax.tree.unflatten(tree, [*leaves[:index], moved, *leaves[index + 1 :]]))

    return [
        np.array([value(i, leaf + 1e-6 * d) - value(i, leaf - 1e-6 * d) for d in steps]) / 2e-6
        for i, (leaf, steps) in enumerate(
            zip(leaves, jax.tree.leaves(directions(arguments)), strict=True)
        )
    ]


@functools.partial(jax.jit, static_argnames=("name", "capacity"))
def run_and_differentiate(x, weights, w, ids, *, name, capacity):
    """Returns outputs, and the gradients of a sum of their sines."""

    def run(x, weights, w):
        routes = Routes(ids, weights)
        y = experts(x, routes, w, swiglu, capacity=capacity, implementation=name)
        return jnp.sum(jnp.sin(y)), y

    grads, y = jax.grad(run, (0, 1, 2), has_aux=True)(x, weights, w)
    return y, grads


@functools.cache
def expected(kind: str, gated: bool):
    inputs, ids = arrays(gated=gated), routed(kind)
    grads = slopes(lambda *a: np.sin(by_hand(*a, ids)).sum(), inputs)
    return by_hand(*inputs, ids), grads


KINDS = ("even", "one idle", "all to one", "some dropped", "nobody")
FEW_SLOTS = ("few slots",)  # A program of its own: the capacity is one of its constants.


@pytest.mark.parametrize(
    ("kinds", "gated"),
    [
        (KINDS, True),
        (KINDS, False),
        (FEW_SLOTS, True),
        pytest.param(FEW_SLOTS, False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_values_and_gradients_are_those_of_a_loop_over_tokens(name, kinds, gated, monkeypatch):
    # covers N11 N12 N14
    monkeypatch.setattr(expert_mlp, "BLOCK_ROWS", 2)
    with jax.enable_x64(True):
        for kind in kinds:
            y, grads = expected(kind, gated)
            inputs, ids = arrays(gated=gated), routed(kind)
            capacity = CAPACITY if kind == "few slots" else None
            actual, slope = jax.device_get(
                run_and_differentiate(*inputs, ids, name=name, capacity=capacity)
            )
            assert actual.dtype == np.float64
            np.testing.assert_allclose(actual, y, rtol=1e-11, atol=1e-12, err_msg=kind)
            steps = jax.tree.leaves(directions(inputs))
            for a, d, b in zip(jax.tree.leaves(slope), steps, grads, strict=True):
                along = (a * d).reshape(3, -1).sum(axis=1)
                np.testing.assert_allclose(along, b, atol=1e-7, err_msg=kind)
            if kind == "one idle":
                assert (slope[2].w_in[1] == 0).all() and (slope[2].b_out[1] == 0).all()


MESHES = [
    {"expert": 4, "data": 2},
    {"expert": 2, "model": 2, "data": 2},
    {"context": 2, "expert": 2, "model": 2},
    {"replica": 2, "expert": 2, "data": 2},
]
# The other meshes are slow tests.
QUICK_MESHES = {"blocks": (MESHES[0], MESHES[2]), "gather": MESHES[2:3], "reference": MESHES[2:3]}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param(
            *(name, sizes),
            id=f"{name}-{sizes}",
            marks=[] if sizes in QUICK_MESHES[name] else pytest.mark.slow,
        )
        for name in QUICK_MESHES
        for sizes in MESHES
    ],
)
def test_every_mesh_computes_what_one_device_does(name, sizes):
    """All tokens of a row go to one expert too, because buffers have a fixed size."""
    mesh = meshes.make_mesh(meshes.MeshConfig(**sizes))
    rows, length = 8, 6
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(rows, length, D)), arrays()[2]
    ids = np.array([[rng.permutation(E)[:k] for _ in range(length)] for _ in range(rows)])
    ids[0], ids[1, :, 0], ids[1, :, 1] = (2, E), 0, 3
    weights = rng.random(ids.shape)
    inputs = jax.tree.map(np.float32, (x, weights, w))
    y, grads = run_and_differentiate(*inputs, np.int32(ids), name="reference", capacity=None)
    with jax.set_mesh(mesh):
        sharding = meshes.batch_sharding(mesh)
        inputs = (*jax.device_put(inputs[:2], sharding), inputs[2])
        ids = jax.device_put(np.int32(ids), sharding)
        actual, actual_grads = run_and_differentiate(*inputs, ids, name=name, capacity=None)
    np.testing.assert_allclose(actual, y, rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(actual_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("expert_fn", [expert_mlp.blocks, expert_mlp.grouped, expert_mlp.ragged])
def test_rows_of_no_expert_are_neither_read_nor_left_open(expert_fn, monkeypatch):
    # covers N14
    monkeypatch.setattr(expert_mlp, "BLOCK_ROWS", 4)
    w = jax.tree.map(jnp.float32, arrays()[2])
    x = np.random.default_rng(0).normal(size=(9, D)).astype(np.float32)
    sizes = jnp.array([2, 0, 3, 0])

    def run(x, w):
        y = expert_fn(swiglu, x, sizes, w)
        return jnp.sum(jnp.sin(y)), y

    run = jax.jit(jax.grad(run, (0, 1), has_aux=True))
    grads, y = run(x, w)
    assert (y[5:] == 0).all() and (y[:5] != 0).all()
    x[5:] = np.nan
    others, z = run(x, w)
    np.testing.assert_array_equal(y, z)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_no_token_is_lost_or_counted_twice(data):
    """Expert e returns e + 1 for any input, so a token gets the sum over its experts."""
    ids = [
        data.draw(st.permutations(range(E + k)).map(lambda order: order[:k])) for _ in range(B * T)
    ]
    ids = np.minimum(np.array(ids), E).reshape(B, T, k).astype(np.int32)
    zeros = ExpertWeights(*(None if a is None else np.zeros_like(a) for a in arrays()[2]))
    w = zeros._replace(b_out=np.repeat(np.arange(1.0, E + 1)[:, None], D, axis=1))
    weights = np.ones(ids.shape)
    expected_sums = np.where(ids < E, ids + 1.0, 0).sum(-1)
    for name in ("blocks", "gather"):
        y, _ = run_and_differentiate(np.ones((B, T, D)), weights, w, ids, name=name, capacity=None)
        np.testing.assert_array_equal(y, np.repeat(expected_sums[..., None], D, axis=-1))


def test_half_precision_and_rows_without_tokens():
    x, weights, w = jax.tree.map(jnp.float32, arrays())
    ids = routed("even")
    y, _ = run_and_differentiate(x, weights, w, ids, name="reference", capacity=None)
    for name in ("blocks", "grouped", "gather", "ragged"):
        half, _ = run_and_differentiate(
            x.astype("bfloat16"), weights, w, ids, name=name, capacity=None
        )
        assert half.dtype == jnp.bfloat16
        np.testing.assert_allclose(half.astype(float), y, atol=0.2)
    for shape in ((0, T), (B, 0)):
        none = np.zeros((*shape, k), np.int32)
        y = experts(np.zeros((*shape, D)), Routes(none, none * 1.0), w, swiglu)
        assert y.shape == (*shape, D)


def test_an_unknown_implementation_is_refused():
    x, weights, w = arrays()
    with pytest.raises(ConfigError, match="'block'.*did you mean 'blocks'"):
        experts(x, Routes(routed("even"), weights), w, swiglu, implementation="block")
