"""Training a Mixture of Experts: its losses reach the router, its biases balance the load."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from arch import SequenceInfo
from arch.channels.moe import MoeConfig
from errors import ConfigError
from objectives import CausalLM
from training import mesh as meshes
from training.checkpoint.param_names import leaf_names, named_leaves
from training.optimizer import OptimizerConfig, make_optimizer
from training.program import make_program
from training.settings import Settings, TrainConfig, resolve
from training.state import init_state, init_trainable, make_model_optimizer
from training.step import compute_gradients, make_step

RATE = 0.05
OBJECTIVE = CausalLM()
MOE = MoeConfig(num_experts=4, width=8, bias_update_rate=RATE, balance_loss=0.0)
MODEL = tiny.config("attention", "moe", moe=MOE)
SLOW = OptimizerConfig(learning_rate=1e-6, warmup=9, clip_norm=1e-3)


def rows(batch: int = 8, length: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    pieces = [rng.integers(0, tiny.VOCAB, length + 1).astype(np.int32) for _ in range(batch)]
    made = [OBJECTIVE.make_row([piece], length, rng) for piece in pieces]
    return {name: np.stack([r[name] for r in made]) for name in made[0]}


@pytest.mark.parametrize(
    "sizes",
    [
        {"expert": 2, "context": 2, "model": 2},
        pytest.param({"expert": 2, "data": 2, "model": 2}, marks=pytest.mark.slow),
        pytest.param({"context": 2, "data": 4}, marks=pytest.mark.slow),
    ],
)
def test_declared_losses_reach_the_router_under_scan_remat_and_sharding(sizes):
    moe = dataclasses.replace(MOE, balance_loss=0.01)
    cfg = dataclasses.replace(MODEL, moe=moe, remat="full")
    coefficients = cfg.aux_losses()
    assert coefficients == {"moe.balance_loss": 0.01, "moe.z_loss": 1e-3, "moe.load_excess": 1.0}
    ids, seq = tiny.tokens(8, 8), SequenceInfo.unpacked(8, 8)

    @jax.jit
    def each(made, ids, seq):
        """The losses, and the gradient of each alone."""

        def losses(made):
            aux = made(ids, seq)[1]
            return {name: jnp.sum(aux[name].sum) for name in coefficients}

        values, pull = jax.vjp(losses, made)
        one = {n: jnp.float32([m == n for m in coefficients]) for n in coefficients}
        return values, jax.vmap(pull)(one)[0]

    plain = tiny.model(dataclasses.replace(cfg, remat="none", scan=False))
    made = jax.tree.unflatten(jax.tree.structure(tiny.model(cfg)), jax.tree.leaves(plain))
    values, grads = each(plain, ids, seq)
    mesh = meshes.make_mesh(meshes.MeshConfig(**sizes))
    with jax.set_mesh(mesh):
        placed = jax.device_put(made, meshes.param_shardings(mesh, made))
        others, slopes = each(placed, *jax.device_put((ids, seq), meshes.batch_sharding(mesh)))
    slopes, grads = named_leaves(jax.device_get(slopes)), named_leaves(jax.device_get(grads))
    for i, name in enumerate(coefficients):
        assert (float(values[name]) == 0) == (name == "moe.load_excess")
        np.testing.assert_allclose(others[name], values[name], rtol=1e-5)
        a, b = ({n: g[i] for n, g in every.items()} for every in (slopes, grads))
        leaf = "balance_bias" if name == "moe.load_excess" else "w_router"
        felt = next(n for n in a if n.endswith(leaf))
        assert (np.abs(a[felt]).max(axis=tuple(range(1, a[felt].ndim))) > 0).all()  # every layer
        for n in a:
            np.testing.assert_allclose(a[n], b[n], rtol=1e-3, atol=1e-4, err_msg=f"{name} {n}")


gradients = jax.jit(compute_gradients, static_argnums=(0, 4))


@pytest.fixture(scope="module")
def start():
    """The optimizer, and the state before the first step."""
    tx = make_model_optimizer(SLOW, 10, MODEL, OBJECTIVE)
    return tx, jax.jit(lambda: init_state(MODEL, OBJECTIVE, tx, 4, 0))()


def biases(state) -> np.ndarray:
    found = [a for n, a in named_leaves(state.trainable).items() if n.endswith("balance_bias")]
    return np.concatenate([np.atleast_2d(a) for a in found])


def skewed(state):
    """Make the router select expert 0 for every token."""
    leaves = named_leaves(state.trainable)
    leaves = [
        a.at[..., 0].set(10 * RATE) if n.endswith("balance_bias") else a for n, a in leaves.items()
    ]
    return state._replace(trainable=jax.tree.unflatten(jax.tree.structure(state.trainable), leaves))


def test_biases_move_by_the_sign_of_the_excess_and_even_the_load(start):
    """Independent of the learning rate and of clipping; Adam has no moments for them."""
    tx, state = start
    state = skewed(state)
    assert not any("balance_bias" in name for name in leaf_names(state.opt_state))
    assert any("w_router" in name for name in leaf_names(state.opt_state))
    step = jax.jit(make_step(OBJECTIVE, tx, SLOW, steps=10, grad_accum_steps=1))
    grads, _, metrics = gradients(OBJECTIVE, state.trainable, rows(), None, 1)
    np.testing.assert_allclose(np.asarray(metrics["moe.max_load"].mean), 2.0, rtol=1e-6)
    named = named_leaves(grads)
    rest = [g for n, g in named.items() if not n.endswith("balance_bias")]
    excess = biases(state._replace(trainable=grads))
    np.testing.assert_allclose(excess.sum(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(excess[:, 0], 1 - 2 / 4, rtol=1e-6)  # of each token, all over mean
    before = biases(state)
    state, said = step(state, rows())
    np.testing.assert_allclose(said["grad_norm"].mean, optax.tree.norm(rest), rtol=1e-4)
    np.testing.assert_allclose(biases(state), before - RATE * np.sign(excess), atol=1e-6)
    for i in range(24):
        state, said = step(state, rows(seed=i))
    assert (np.asarray(said["moe.max_load"].mean) < 1.5).all()


def test_microbatches_and_unrolled_layers_move_biases_alike(start):
    _, state = start
    unrolled = dataclasses.replace(MODEL, scan=False)
    other = jax.eval_shape(lambda: init_trainable(unrolled, OBJECTIVE, 0))
    other = jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(state.trainable))
    whole, loss, _ = gradients(OBJECTIVE, state.trainable, rows(), None, 1)
    parts, again, _ = gradients(OBJECTIVE, other, rows(), None, 4)
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "sgd"])
def test_every_optimizer_leaves_biases_to_their_own_rule(name):
    rng = np.random.default_rng(0)
    roles = {"w": "matrix", "table": "table", "bias": "balance_bias"}
    shapes = {"w": (2, 4, 6), "table": (5, 4), "bias": (2, 4)}
    params, grads = (
        {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}
        for _ in range(2)
    )
    decays = dict.fromkeys(roles, True)

    def update(only):
        def part(tree):
            return {n: tree[n] for n in only}

        tx = make_optimizer(
            OptimizerConfig(name=name), 10, part(decays), part(roles), {"bias": 0.25}
        )
        return tx.update(part(grads), tx.init(part(params)), part(params))[0]

    found, alone = update(("w", "table", "bias")), update(("w", "table"))
    np.testing.assert_allclose(found["bias"], -0.25 * np.sign(grads["bias"]))
    for n in alone:
        np.testing.assert_allclose(found[n], alone[n], rtol=1e-5, atol=1e-8)


def test_the_expert_axis_must_divide_the_experts():
    model = dataclasses.replace(MODEL, moe=dataclasses.replace(MOE, num_experts=6))
    train = TrainConfig(batch_size=8, seq_len=8)
    settings = resolve(Settings(model=model, train=train), tiny.VOCAB)
    mesh = meshes.make_mesh(meshes.MeshConfig(expert=4))
    said = r"^mesh.expert 4 does not divide model.moe.num_experts 6; choose one of 1, 2, 3, 6$"
    with pytest.raises(ConfigError, match=said):
        make_program(settings, mesh)
