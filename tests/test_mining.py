"""Mined hard negatives: against a loop, step by step, on eight devices, and their price."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_contrastive import T, batch_of, unit

from arch import cost
from errors import ConfigError
from objectives import Contrastive, Learner
from objectives.mining import TEXT, Held, Mining, nearest
from protocol.budget import by_steps
from schema import changed
from training import mesh as meshes
from training.banks import consulted
from training.report import positions
from training.settings import Settings

B, P = 8, 20


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
    held = Held({"segments": there[:, None]}, own, jnp.asarray(pool, jnp.float32))
    batch = {"text_ids": ids, "weights": weights}
    for count, skip in ((1, 0), (2, 1), (5, 4)):
        found = nearest(
            *(jnp.asarray(anchors, jnp.float32), held, batch),
            Mining(every=1, pool=9, count=count, skip=skip),
        )
        expected = np.full((5, count), -1)
        for i in (row for row in range(5) if weights[row]):
            equal = [(own[p] == ids[i, s]).all() for s in (0, 1) for p in range(9)]
            may = [p for p in order[i] if there[p] and not equal[p] and not equal[9 + p]]
            some = may[skip : skip + count]
            expected[i, : len(some)] = some
        assert found.tolist() == expected.tolist()
    assert -1 in expected[0]  # a pool of which too little is left


MODEL = tiny.config(depth=1)
OBJECTIVE = Contrastive(mining=Mining(every=2, pool=P, count=2))


@pytest.fixture(scope="module")
def bank():
    rows = batch_of(Contrastive(), seed=5, rows=P, empty=(4,))
    return {"own": OBJECTIVE.bank.held(tiny.WIDTH, rows)}


def first_batch():
    return {n: jnp.asarray(a) for n, a in batch_of(Contrastive(), rows=B).items()}


def test_the_pool_is_read_again_every_so_many_steps(bank):
    """By the encoder as it is then, in chunks; anchors are read by the encoder of each step."""
    learner, other = (Learner(tiny.model(MODEL, seed=seed)) for seed in (0, 1))
    batch = first_batch()
    step = jax.jit(consulted, static_argnums=(0, 5))

    def run(learner, bank, number, batch=batch):
        return step(OBJECTIVE, learner, bank, batch, jnp.int32(number), 2)

    @jax.jit
    def read(learner, texts):
        return OBJECTIVE.encode(learner, {n: texts[n][:, None] for n in TEXT}, None).rows[:, 0]

    pool, close = read(learner, bank["own"].texts), {"rtol": 1e-5, "atol": 1e-6}
    first, more = run(learner, bank, 0)
    np.testing.assert_allclose(first["own"].vectors, pool, **close)
    kept, changed = run(other, first, 1)
    assert (kept["own"].vectors == first["own"].vectors).all()
    padding = run(other, kept, 1, jax.tree.map(jnp.zeros_like, batch))[1]
    assert padding["tokens"].shape == (B, 4, T) and not any(a.any() for a in padding.values())
    new = run(other, kept, 2)[0]["own"].vectors
    np.testing.assert_allclose(new, read(other, bank["own"].texts), **close)
    for own, made in ((learner, more), (other, changed)):
        held = first["own"]._replace(vectors=pool)
        anchors = read(own, {n: batch[n][:, 0] for n in TEXT})
        places = nearest(anchors, held, batch, OBJECTIVE.mining)
        assert made["tokens"].shape == (B, 4, T) and (places >= 0).all()
        for name in TEXT:
            assert (made[name][:, :2] == batch[name]).all()
            assert (made[name][:, 2:] == held.texts[name][places]).all()
        assert (made["text_ids"][:, 2:] == held.ids[places]).all()


@pytest.mark.slow
def test_eight_devices_mine_what_one_does(bank):
    # covers N16
    learner, batch = Learner(tiny.model(MODEL)), first_batch()
    run = jax.jit(consulted, static_argnums=(0, 5))
    alone, more = run(OBJECTIVE, learner, bank, batch, jnp.int32(0), 1)
    mesh = meshes.build(meshes.MeshConfig(data=4, replica=2))
    rows = {n: jax.device_put(a, meshes.rows_like(mesh, a.shape)) for n, a in batch.items()}
    with jax.set_mesh(mesh):
        placed = jax.device_put(learner, meshes.layouts(mesh, learner))
        whole = jax.device_put(bank, meshes.everywhere(mesh))
        held, again = run(OBJECTIVE, placed, whole, rows, jnp.int32(0), 1)
    np.testing.assert_allclose(held["own"].vectors, alone["own"].vectors, rtol=1e-5, atol=1e-6)
    assert all((again[name] == more[name]).all() for name in again)


def test_mining_is_paid_for():
    """A token that is read without a gradient costs a third; by hand."""
    shared = {"objective": "contrastive", "train": {"steps": 90}, "model": {"vocab": 300}}
    base = changed(Settings(), shared, "config")
    rich = {"contrastive": {"mining": {"every": 20, "pool": 500, "count": 2}}}
    mined = changed(base, rich, "config")
    batch, length = base.train.batch, base.train.length
    texts = 90 * batch * 4 + (90 * batch + 5 * 500) / 3  # pool at steps 0, 20 .. 80
    assert positions(base) == 90 * batch * 2 * length
    assert positions(mined) == round(texts * length)
    plain, dear = by_steps({"none": base, "mined": mined}, reference="none")
    assert abs(dear.residual) < 0.01 and dear.settings.train.steps < 40
    price = cost(mined.model, length, view="both", logits=0.0).training_flops
    spent = price * positions(dear.settings)
    assert abs(spent / plain.measures.training_flops - 1) < 0.01


def test_a_pool_that_is_too_small_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"mining.skip 3 \+ count 2 is above its pool 4") as error:
        Mining(every=1, pool=4, count=2, skip=3)
    assert "\n" not in str(error.value)


def test_nothing_is_mined_where_it_is_judged():
    judged = dataclasses.replace(OBJECTIVE, negatives=1).judged()
    assert judged.bank is None and judged.rows(tiny.config(), T).texts == 2
