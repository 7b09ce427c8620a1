"""Mined hard negatives: against a loop, step by step, on eight devices, and their price."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from test_contrastive import T, batch_of, unit

from arch import compute_cost
from errors import ConfigError
from objectives import Contrastive, Trainable
from objectives.mining import TEXT_ARRAYS, BankState, MiningConfig, nearest_neighbors
from protocol.study.budget import match_by_steps
from settings.changes import with_changes
from training import mesh as meshes
from training.accounting import run_tokens
from training.memory_bank import update_and_lookup
from training.settings import Settings

B, P = 8, 20


nearest = jax.jit(nearest_neighbors, static_argnums=3)


def test_the_nearest_that_are_no_match_are_taken():
    """Against a loop: equal texts, padding in the pool and in the batch, and those passed over."""
    # covers N15
    rng = np.random.default_rng(0)
    anchors, pool = unit(5, 6), unit(9, 6, seed=1)
    ids = rng.integers(0, 1 << 30, (5, 3, 2)).astype(np.int32)
    own = rng.integers(0, 1 << 30, (9, 2)).astype(np.int32)
    order = np.argsort(-(anchors @ pool.T), axis=1)
    own[order[0, 0]] = ids[0, 0]  # the nearest text is the anchor itself
    own[order[1, 1]] = ids[1, 1]  # the second nearest is the match
    there, weights = np.ones(9, int), np.array([1, 1, 1, 0, 1.0])
    there[order[2, 0]] = 0
    held = BankState({"segment_ids": there[:, None]}, own, np.float32(pool))
    batch = {"text_ids": ids, "weights": weights}
    for count, skip in ((1, 0), (2, 1), (5, 4)):
        cfg = MiningConfig(refresh_every=1, pool_size=9, hard_negatives=count, skip_nearest=skip)
        found = nearest(np.float32(anchors), held, batch, cfg)
        expected = np.full((5, count), -1)
        for i in (row for row in range(5) if weights[row]):
            equal = [(own[p] == ids[i, s]).all() for s in (0, 1) for p in range(9)]
            may = [p for p in order[i] if there[p] and not equal[p] and not equal[9 + p]]
            some = may[skip : skip + count]
            expected[i, : len(some)] = some
        assert found.tolist() == expected.tolist()
    assert -1 in expected[0]  # a pool of which too little is left


MODEL = tiny.config(depth=1)
OBJECTIVE = Contrastive(mining=MiningConfig(refresh_every=2, pool_size=P, hard_negatives=2))


@pytest.fixture(scope="module")
def bank():
    """The bank of P rows, which are added in two batches, the second with padding behind."""
    rows = batch_of(Contrastive(), seed=5, rows=P, empty=(4,))
    miner = OBJECTIVE.memory_bank
    state = miner.init(tiny.WIDTH, {name: x[0] for name, x in rows.items()})
    for first, end in ((0, B + 4), (B + 4, P)):
        batch = {n: np.resize(x[first:end], (B + 4, *x.shape[1:])) for n, x in rows.items()}
        state = miner.add_rows(None, state, "train", batch, np.int32(first), 1)
    for name in TEXT_ARRAYS:
        np.testing.assert_array_equal(state.texts[name], rows[name][:, 1])
    return jax.device_get({"objective": state})


def first_batch():
    return batch_of(Contrastive(), rows=B)


def test_the_pool_is_read_again_every_so_many_steps(bank):
    """By the encoder as it is then, in chunks; anchors are read by the encoder of each step."""
    learner, other = (Trainable(tiny.model(MODEL, seed=seed)) for seed in (0, 1))
    batch = first_batch()
    step = jax.jit(update_and_lookup, static_argnums=(0, 5))

    def run(learner, bank, number, batch=batch):
        return jax.device_get(step(OBJECTIVE, learner, bank, batch, np.int32(number), 2))

    @jax.jit
    def read(learner, texts):
        return OBJECTIVE.forward(
            learner, {n: texts[n][:, None] for n in TEXT_ARRAYS}, None
        ).vectors[:, 0]

    pool, close = read(learner, bank["objective"].texts), {"rtol": 1e-5, "atol": 1e-6}
    first, more = run(learner, bank, 0)
    np.testing.assert_allclose(first["objective"].vectors, pool, **close)
    kept, changed = run(other, first, 1)
    assert (kept["objective"].vectors == first["objective"].vectors).all()
    padding = run(other, kept, 1, jax.tree.map(np.zeros_like, batch))[1]
    assert padding["tokens"].shape == (B, 4, T) and not any(a.any() for a in padding.values())
    new = run(other, kept, 2)[0]["objective"].vectors
    np.testing.assert_allclose(new, read(other, bank["objective"].texts), **close)
    for own, made in ((learner, more), (other, changed)):
        held = first["objective"]._replace(vectors=pool)
        anchors = read(own, {n: batch[n][:, 0] for n in TEXT_ARRAYS})
        places = np.asarray(nearest(anchors, held, batch, OBJECTIVE.mining))
        assert made["tokens"].shape == (B, 4, T) and (places >= 0).all()
        for name in TEXT_ARRAYS:
            assert (made[name][:, :2] == batch[name]).all()
            assert (made[name][:, 2:] == held.texts[name][places]).all()
        assert (made["text_ids"][:, 2:] == held.ids[places]).all()


@pytest.mark.slow
def test_eight_devices_mine_what_one_does(bank):
    # covers N16
    learner, batch = Trainable(tiny.model(MODEL)), first_batch()
    run = jax.jit(update_and_lookup, static_argnums=(0, 5))
    alone, more = run(OBJECTIVE, learner, bank, batch, np.int32(0), 1)
    mesh = meshes.make_mesh(meshes.MeshConfig(data=4, replica=2))
    rows = {
        n: jax.device_put(a, meshes.batch_array_sharding(mesh, a.shape)) for n, a in batch.items()
    }
    with jax.set_mesh(mesh):
        placed = jax.device_put(learner, meshes.param_shardings(mesh, learner))
        whole = jax.device_put(bank, meshes.replicated(mesh))
        held, again = run(OBJECTIVE, placed, whole, rows, np.int32(0), 1)
    np.testing.assert_allclose(
        held["objective"].vectors, alone["objective"].vectors, rtol=1e-5, atol=1e-6
    )
    assert all((again[name] == more[name]).all() for name in again)


def test_mining_is_paid_for():
    """A token that is read without a gradient costs a third; by hand."""
    shared = {"objective": "contrastive", "train": {"steps": 90}, "model": {"vocab_size": 300}}
    base = with_changes(Settings(), shared)
    rich = {"contrastive": {"mining": {"refresh_every": 20, "pool_size": 500, "hard_negatives": 2}}}
    mined = with_changes(base, rich)
    batch, length = base.train.batch_size, base.train.seq_len
    texts = 90 * batch * 4 + (90 * batch + 5 * 500) / 3  # pool at steps 0, 20 .. 80
    assert run_tokens(base) == 90 * batch * 2 * length
    assert run_tokens(mined) == round(texts * length)
    plain, dear = match_by_steps({"none": base, "mined": mined}, reference="none")
    assert abs(dear.residual) < 0.01 and dear.settings.train.steps < 40
    price = compute_cost(
        mined.model, length, view="bidirectional", logit_fraction=0.0
    ).training_flops
    spent = price * run_tokens(dear.settings)
    assert abs(spent / plain.costs.training_flops - 1) < 0.01


def test_a_pool_that_is_too_small_is_refused_in_one_line():
    with pytest.raises(
        ConfigError, match=r"mining.skip_nearest 3 \+ hard_negatives 2 is above the pool_size 4"
    ) as error:
        MiningConfig(refresh_every=1, pool_size=4, hard_negatives=2, skip_nearest=3)
    assert "\n" not in str(error.value)


def test_nothing_is_mined_where_it_is_judged():
    judged = dataclasses.replace(OBJECTIVE, hard_negatives=1).for_eval()
    assert judged.memory_bank is None and judged.row_spec(tiny.config(), T).n_texts == 2
