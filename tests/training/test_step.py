"""One step: microbatches and devices add up to the batch; a bad update is never applied."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from errors import ConfigError
from objectives import CausalLM, all_term_weights
from training import mesh as meshes
from training.optimizer import (
    OptimizerConfig,
    clip_by_global_norm,
    lr_schedule,
    make_optimizer,
    param_metadata,
)
from training.state import UpdateGuard, init_state, make_model_optimizer
from training.step import check_update, compute_gradients, make_step

OBJECTIVE = CausalLM(z_loss=1e-3)


def rows(batch: int = 8, length: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with documents of uneven lengths, the last rows nearly empty."""
    rng = np.random.default_rng(seed)
    made = []
    for row in range(batch):
        sizes = [3, 2] if row < batch // 2 else [1]
        pieces = [rng.integers(0, tiny.VOCAB, size + 1).astype(np.int32) for size in sizes]
        made.append(OBJECTIVE.make_row(pieces, length, rng))
    return {name: np.stack([r[name] for r in made]) for name in made[0]}


@pytest.fixture(scope="module")
def learner():
    cfg = OptimizerConfig()
    model = tiny.config(depth=1)
    tx = make_model_optimizer(cfg, 10, model, OBJECTIVE)
    return jax.jit(lambda: init_state(model, OBJECTIVE, tx, 4, 0))().trainable


def test_example_puts_pieces_into_a_row():
    pieces = [np.array([9, 1, 2, 3]), np.array([4, 5])]
    row = OBJECTIVE.make_row(pieces, 6, np.random.default_rng(0))
    np.testing.assert_array_equal(row["tokens"], [9, 1, 2, 4, 0, 0])
    np.testing.assert_array_equal(row["targets"], [1, 2, 3, 5, 0, 0])
    np.testing.assert_array_equal(row["positions"], [0, 1, 2, 0, 0, 0])
    np.testing.assert_array_equal(row["segment_ids"], [1, 1, 1, 2, 0, 0])
    np.testing.assert_array_equal(row["weights"], [1, 1, 1, 1, 0, 0])
    assert not row["is_prefix"].any()


def test_loss_is_the_weighted_mean_of_log_softmax(learner):
    """Compared with logits and plain numpy; the weights are those of `term_weights`."""
    batch = rows()
    from arch import SequenceInfo

    hidden = learner.model(batch["tokens"], SequenceInfo.from_batch(batch, "causal"))[0]
    logits = np.asarray(learner.model.logits(hidden), np.float64)[..., : tiny.VOCAB]
    lse = np.log(np.exp(logits).sum(-1))
    nats = lse - np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    w = batch["weights"]
    expected = (nats * w).sum() / w.sum() + 1e-3 * (lse**2 * w).sum() / w.sum()
    terms, metrics = OBJECTIVE.reduce(learner, OBJECTIVE.forward(learner, batch, None), batch)
    total = sum(t.coefficient * t.sum / t.weight for t in terms.values())
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    right = ((logits.argmax(-1) == batch["targets"]) * w).sum()
    assert float(metrics["accuracy"].sum) == right
    announced = all_term_weights(OBJECTIVE, batch, list(terms))
    assert {n: float(t.weight) for n, t in terms.items()} == {
        n: float(v) for n, v in announced.items()
    }


def test_microbatches_and_devices_add_up_to_the_batch(learner):
    # covers N10 N23
    batch = rows()
    run = jax.jit(compute_gradients, static_argnums=(0, 4))
    grads, loss, metrics = run(OBJECTIVE, learner, batch, None, 1)

    def same(others):
        other, value, numbers = others
        np.testing.assert_allclose(loss, value, rtol=1e-6)
        assert float(numbers["nats"].weight) == float(metrics["nats"].weight) == 24
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)

    same(run(OBJECTIVE, learner, batch, None, 4))
    mesh = meshes.make_mesh(meshes.MeshConfig(data=4, replica=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(learner, meshes.param_shardings(mesh, learner))
        same(run(OBJECTIVE, placed, jax.device_put(batch, meshes.batch_sharding(mesh)), None, 1))


def test_a_batch_without_targets_is_no_loss_and_no_gradient(learner):
    # covers N9
    batch = rows() | {"weights": np.zeros((8, 6), np.float32)}
    grads, loss, _ = jax.jit(compute_gradients, static_argnums=(0, 4))(
        OBJECTIVE, learner, batch, None, 1
    )
    assert float(loss) == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("n_micro", [1, 2])
def test_small_weights_of_all_tokens_are_no_smaller_loss(learner, n_micro):
    gradients = jax.jit(compute_gradients, static_argnums=(0, 4))
    batch = rows()
    full, faint = (
        gradients(OBJECTIVE, learner, batch | {"weights": batch["weights"] * w}, None, n_micro)
        for w in (np.float32(1), np.float32(1e-3))
    )
    assert float(faint[1]) == pytest.approx(float(full[1]), rel=1e-5)
    for a, b in zip(*(jax.tree.leaves(grads) for grads, _, _ in (full, faint)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    assert float(faint[2]["nats"].mean) == pytest.approx(float(full[2]["nats"].mean), rel=1e-5)


@pytest.fixture(scope="module")
def stepping():
    """A compiled step under the skip policy, and its first state."""
    cfg = OptimizerConfig(on_nonfinite="skip", max_skips=1, learning_rate=1e-2, warmup=2)
    model = tiny.config(depth=1)
    tx = make_model_optimizer(cfg, 10, model, OBJECTIVE)
    state = jax.jit(lambda: init_state(model, OBJECTIVE, tx, cfg.spike_window, 0))()
    step = make_step(OBJECTIVE, tx, cfg, steps=10, grad_accum_steps=1)
    return jax.jit(step), state


def test_a_step_that_is_not_finite_changes_nothing(stepping):
    # covers N1 N2 N3
    step, state = stepping
    state, metrics = step(state, rows())
    assert float(metrics["skipped"].sum) == 0
    poison = rows() | {"weights": np.full((8, 6), np.nan, np.float32)}
    after, metrics = step(state, poison)
    assert float(metrics["skipped"].sum) == 1 and float(metrics["halted"].sum) == 0
    assert int(after.step) == 2 and int(after.guard.num_skipped) == 1
    unchanged(state, after)
    halted, metrics = step(after, poison)  # the second in a row is over the limit
    assert float(metrics["halted"].sum) == 1
    frozen, _ = step(halted, rows())
    unchanged(state, frozen)
    went_on, _ = step(after, rows(seed=1))
    assert int(went_on.guard.consecutive_skips) == 0
    assert not np.array_equal(*(jax.tree.leaves(s.trainable)[0] for s in (state, went_on)))


def unchanged(a, b):
    pair = (jax.tree.leaves((s.trainable, s.opt_state)) for s in (a, b))
    for x, y in zip(*pair, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("loss", "norm", "policy", "taken", "halted"),
    [
        (1.0, 1.0, "abort", True, False),
        (np.nan, 1.0, "abort", False, True),
        (np.inf, 1.0, "abort", False, True),
        (
            1.0,
            np.inf,
            "abort",
            False,
            True,
        ),  # the loss is finite, but clipping would make the update NaN
        (1.0, np.nan, "skip", False, False),
    ],
)
def test_admission(loss, norm, policy, taken, halted):
    # covers N1 N2
    cfg = OptimizerConfig(on_nonfinite=policy)
    got, guard = check_update(_guard(4), jnp.float32(loss), jnp.float32(norm), cfg)
    assert (bool(got), bool(guard.halted)) == (taken, halted)


def test_loss_spikes_are_skipped_once_half_a_window_is_known():
    # covers N4
    cfg, guard = OptimizerConfig(spike_sigma=6.0, spike_window=8), _guard(8)
    losses = [3.0, 3.1, 90.0, 2.9, 3.0, 3.1, 90.0, 3.0]
    took = []
    for loss in losses:
        taken, guard = check_update(guard, jnp.float32(loss), jnp.float32(1), cfg)
        took.append(bool(taken))
    # The first 90 comes before half of the window is filled, and raises the deviation.
    assert took == [True] * 8
    guard = _guard(8)
    took = []
    for loss in [3.0, 3.1, 2.9, 3.0, 90.0, 3.1]:
        taken, guard = check_update(guard, jnp.float32(loss), jnp.float32(1), cfg)
        took.append(bool(taken))
    assert took == [True, True, True, True, False, True]
    assert int(guard.num_skipped) == 1 and int(guard.num_accepted) == 5 and not bool(guard.halted)


@pytest.mark.parametrize("policy", ["abort", "skip"])
def test_spikes_without_end_halt(policy):
    """A loss that stays high is no spike."""
    # covers N4
    cfg = OptimizerConfig(on_nonfinite=policy, spike_sigma=6.0, spike_window=8, max_skips=3)
    guard, halts = _guard(8), []
    for loss in [3.0, 3.1, 2.9, 3.0, 3.1, *[6.0] * 5]:
        taken, guard = check_update(guard, jnp.float32(loss), jnp.float32(1), cfg)
        halts.append(bool(guard.halted))
    assert halts == [False] * 8 + [True] * 2 and int(guard.num_accepted) == 5


def test_going_back_halts_at_spikes_too():
    cfg, guard = (
        OptimizerConfig(on_nonfinite="rollback", spike_sigma=6.0, spike_window=8),
        _guard(8),
    )
    for loss in [3.0, 3.1, 2.9, 3.0]:
        taken, guard = check_update(guard, jnp.float32(loss), jnp.float32(1), cfg)
    assert bool(taken) and not bool(guard.halted)
    taken, guard = check_update(guard, jnp.float32(90), jnp.float32(1), cfg)
    assert not bool(taken) and bool(guard.halted)


def _guard(window: int) -> UpdateGuard:
    zero = jnp.zeros((), jnp.int32)
    return UpdateGuard(jnp.zeros((), bool), zero, zero, jnp.zeros((window,)), zero)


def test_schedules_at_their_edges():
    # covers N19
    base = OptimizerConfig(learning_rate=1.0, warmup=10, final_lr_ratio=0.1)
    for name, middle in (("constant", 1.0), ("cosine", 0.55), ("wsd", 1.0)):
        at = lr_schedule(dataclasses.replace(base, schedule=name), 110)
        assert float(at(0)) == pytest.approx(0.1)  # the first step already learns
        assert float(at(10)) == pytest.approx(1.0)
        assert float(at(60)) == pytest.approx(middle)
        end = 1.0 if name == "constant" else 0.1
        assert float(at(110)) == pytest.approx(end) == float(at(10_000))
    for steps in (5, 10):
        with pytest.raises(
            ConfigError,
            match=f"warmup 10 must be smaller than train.steps {steps}; largest: {steps - 1}",
        ):
            lr_schedule(base, steps)
    assert float(lr_schedule(dataclasses.replace(base, warmup=0), 0)(0)) > 0


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "sgd"])
def test_stacked_and_unstacked_parameters_get_equal_updates(name):
    rng = np.random.default_rng(0)
    stack, grads = (rng.normal(size=(3, 4, 6)).astype(np.float32) for _ in range(2))
    cfg = OptimizerConfig(name=name, weight_decay=0.5)

    def update(params, grads, roles):
        tx = make_optimizer(cfg, 10, dict.fromkeys(params, True), roles)
        return tx.update(grads, tx.init(params), params)[0]

    whole = update({"w": stack}, {"w": grads}, {"w": "matrix"})["w"]
    names = [f"w{i}" for i in range(3)]
    alone = update(
        dict(zip(names, stack, strict=True)),
        dict(zip(names, grads, strict=True)),
        dict.fromkeys(names, "matrix"),
    )
    np.testing.assert_allclose(whole, np.stack([alone[n] for n in names]), rtol=1e-5, atol=1e-9)


def test_muon_updates_are_orthogonal_and_tables_are_left_to_adam(learner):
    roles = param_metadata(learner, "role")
    assert roles["model.embed.table"] == "table"
    assert roles["model.stack.blocks.0.mixer.w_q"] == "matrix"
    assert roles["model.stack.norm.scale"] == "vector"
    g = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    cfg = OptimizerConfig(name="muon", learning_rate=1.0, weight_decay=0.0, schedule="constant")
    params = {"m": jnp.zeros((8, 4)), "t": jnp.zeros((8, 4))}
    tx = make_optimizer(cfg, 10, dict.fromkeys(params, False), {"m": "matrix", "t": "table"})
    updates = tx.update({"m": g, "t": g}, tx.init(params), params)[0]
    singular = np.linalg.svd(np.asarray(updates["m"]), compute_uv=False)
    assert singular.max() / singular.min() < 2.5  # five Newton-Schulz steps bring them near
    np.testing.assert_allclose(updates["t"], -np.sign(g), atol=1e-3)


def test_decay_acts_on_what_parts_declare(learner):
    decays = param_metadata(learner, "decay")
    assert decays["model.stack.blocks.0.mixer.w_q"] and not decays["model.stack.norm.scale"]
    assert not decays["model.embed.table"]
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    tx = make_optimizer(
        OptimizerConfig(learning_rate=0.1, weight_decay=0.5, schedule="constant"),
        *(10, {"a": True, "b": False}, {"a": "matrix", "b": "vector"}),
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    updates = tx.update(zero, tx.init(params), params)[0]
    np.testing.assert_allclose(updates["a"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates["b"], 0)


def test_clipping_keeps_direction():
    grads = {"a": jnp.array([3.0, 4.0])}
    norm = optax.tree.norm(grads)
    np.testing.assert_allclose(clip_by_global_norm(grads, norm, 1.0)["a"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(clip_by_global_norm(grads, norm, 10.0)["a"], [3, 4])
    np.testing.assert_array_equal(clip_by_global_norm(grads, norm, 0.0)["a"], [3, 4])


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"data": 3}, "does not fill 8 devices.*data=-1"),
        ({"data": -1, "model": -1}, "more than once"),
        ({"model": 3}, "does not fill 8 devices"),
        ({"model": 0}, "mesh.model is 0"),
        ({"data": 16}, "does not fill 8 devices"),
    ],
)
def test_meshes_that_cannot_be(sizes, said):
    # covers C10
    with pytest.raises(ConfigError, match=said):
        meshes.make_mesh(meshes.MeshConfig(**sizes))


def test_rows_must_divide():
    # covers C9
    mesh = meshes.make_mesh(meshes.MeshConfig(data=4, context=2))
    with pytest.raises(ConfigError, match=r"train.batch_size 12 .* = 8; nearest valid value: 8"):
        meshes.check_batch(mesh, 12, 2, 8)
    with pytest.raises(ConfigError, match=r"train.seq_len 7 .*context 2; nearest valid value: 6"):
        meshes.check_batch(mesh, 8, 2, 7)
