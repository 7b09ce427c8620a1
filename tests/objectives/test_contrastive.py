"""InfoNCE against loops, representations cached in microbatches, devices, and what is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from arch.block import BlockConfig
from arch.channels.moe import MoeConfig
from arch.config import EncoderConfig
from errors import ConfigError
from objectives import Contrastive, Embeddings, Trainable
from objectives.contrastive import hash_text
from objectives.infonce import alignment, info_nce, negative_mask, uniformity
from objectives.pooling import clip_keep_inward_gradient, l2_normalize, pool
from settings.changes import with_changes
from training import mesh as meshes
from training.gradients import compute_gradients
from training.settings import Settings

B, T = 8, 10


def batch_of(objective, seed=0, rows=B, empty=()) -> dict[str, np.ndarray]:
    """Text pairs of uneven texts; a row of `empty` is padding."""
    rng = np.random.default_rng(seed)
    example = objective.make_row_fn(tiny.config(), T, Tokens())
    made = []
    for row in range(rows):
        texts = [
            rng.integers(0, 30, rng.integers(2, T)) for _ in range(2 + objective.hard_negatives)
        ]
        texts = texts[
            : 2 + (row % 2) * objective.hard_negatives
        ]  # every second text pair has no negative
        made.append(example([] if row in empty else [t.astype(np.int32) for t in texts], T, rng))
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


class Tokens:
    vocab_size = tiny.VOCAB

    class specials:
        @staticmethod
        def require(*names, needed_by):
            pass


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@jax.jit
def run_info_nce(x, tau, ids, present, weights):
    return info_nce(x, jnp.float32(tau), negative_mask(ids, present, weights))


def test_identical_embeddings_cost_the_log_of_the_batch():
    """SimCSE, arXiv:2104.08821, equation 1."""
    x = np.broadcast_to(unit(1, 1, 5), (16, 2, 5)).astype(np.float32)
    ids = np.arange(64, dtype=np.int32).reshape(16, 2, 2)
    told = run_info_nce(x, 0.05, ids, np.ones((16, 2), bool), np.ones(16))
    np.testing.assert_allclose(told.loss, math.log(16), rtol=1e-6)
    assert not told.correct.any()  # a tie is no find


def looped(x, tau, ids, present, weights):
    """In plain float64 loops: nats and whether the match is nearest."""
    N, V, _ = x.shape
    same = lambda a, b: (ids[a] == ids[b]).all()  # noqa: E731
    nats, right = [], []
    for i in range(N):
        others = [
            j
            for j in range(N)
            if j != i
            and weights[j]
            and not any(same((i, s), (j, t)) for s in (0, 1) for t in (0, 1))
        ]
        hard = [
            (j, v)
            for j in range(N)
            for v in range(2, V)
            if present[j, v] and not same((i, 0), (j, v)) and not same((i, 1), (j, v))
        ]
        own = x[i, 0] @ x[i, 1] / tau
        ahead = [x[i, 0] @ x[j, 1] / tau for j in others] + [x[i, 0] @ x[k] / tau for k in hard]
        back = [x[i, 1] @ x[j, 0] / tau for j in others]
        costs = [np.log(np.sum(np.exp([own, *some]))) - own for some in (ahead, back)]
        nats.append(np.mean(costs))
        right.append(all(own > one for one in ahead))
    return np.array(nats), np.array(right)


def test_info_nce_is_that_of_loops():
    """Hard negatives, padding, and equal texts, which are nobody's negatives."""
    # covers N15
    x, rng = unit(6, 4, 5), np.random.default_rng(3)
    ids = rng.integers(0, 1 << 30, (6, 4, 2)).astype(np.int32)
    ids[2, 0] = ids[0, 0]  # the same anchor twice
    ids[3, 1] = ids[1, 0]  # a match that is another's anchor
    ids[4, 2] = ids[5, 1]  # a hard negative that is somebody's match
    present, weights = np.ones((6, 4), bool), np.ones(6)
    present[1, 3], weights[4] = False, 0.0
    told = run_info_nce(np.float32(x), 0.2, ids, present, weights)
    nats, right = looped(x, 0.2, ids, present, weights)
    np.testing.assert_allclose(told.loss, nats, rtol=1e-5)
    assert told.correct.tolist() == right.tolist()


def test_alignment_and_uniformity_are_those_of_loops():
    """Wang & Isola, arXiv:2005.10242: ||x - y||^2, and log of the mean of exp(-2 ||x - y||^2)."""
    x, weights = unit(7, 2, 4), np.array([1, 1, 0, 1, 1, 1, 1.0])

    @jax.jit
    def run(x, weights):
        return alignment(x), uniformity(x[:, 0], weights), uniformity(x[:1, 0], weights[:1])

    distances, spread, alone = run(np.float32(x), np.float32(weights))
    np.testing.assert_allclose(distances, ((x[:, 0] - x[:, 1]) ** 2).sum(-1), rtol=1e-5)
    kept = x[weights == 1, 0]
    pairs = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(kept) for b in kept[:i]]
    np.testing.assert_allclose(spread, np.log(np.mean(pairs)), rtol=1e-5)
    assert float(alone) == 0


@pytest.mark.parametrize("how", ["mean", "last", "first", "attention"])
def test_pooling_sees_text_alone(how):
    rng = np.random.default_rng(0)
    hidden, sizes, query = rng.normal(size=(3, 6, 4)), (6, 3, 0), rng.normal(size=4)
    text = np.arange(6)[None] < np.array(sizes)[:, None]
    dirty = np.where(text[..., None], hidden, np.nan).astype(np.float32)
    expected = np.zeros((3, 4))
    for i, n in enumerate(sizes[:2]):
        x = hidden[i, :n]
        e = np.exp(x @ query / 2)
        means = {"mean": x.mean(0), "last": x[-1], "first": x[0]}
        expected[i] = (means | {"attention": e @ x / e.sum()})[how]
    found = jax.jit(pool, static_argnums=2)(dirty, text, how, np.float32(query))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_vector_of_zero_has_a_gradient_of_numbers():
    slope = jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(slope).all()


def test_a_bounded_number_can_come_back():
    # covers N15
    for x, slope, passed in ((0.5, 1, 1), (2.0, -1, 0), (2.0, 1, 1), (-3.0, 1, 0), (-3.0, -1, -1)):
        value, back = jax.vjp(lambda x: clip_keep_inward_gradient(x, 0.0, 1.0), jnp.float32(x))
        assert float(value) == min(max(x, 0), 1) and float(back(jnp.float32(slope))[0]) == passed


RICH = Contrastive(
    hard_negatives=1,
    learn_temperature=True,
    pooling="attention",
    projection="mlp",
    projection_dim=8,
)
MODEL = tiny.config(
    *("attention", "moe"),
    depth=1,
    block=BlockConfig(dropout=0.3),
    moe=MoeConfig(num_experts=4, width=8, implementation="reference"),
)


@pytest.fixture(scope="module")
def learner():
    return Trainable(tiny.model(MODEL), RICH.make_head(MODEL, jax.random.key(1)))


def test_cached_representations_give_the_gradient_of_the_big_batch(learner):
    """GradCache, arXiv:2101.06983: with dropout under the same keys, experts, a head, padding."""
    batch = batch_of(RICH, empty=(5,))
    key, parts = jax.random.key(7), 4
    microbatches = {n: np.stack([a[i::parts] for i in range(parts)]) for n, a in batch.items()}

    def whole(learner):
        found = jax.lax.map(
            lambda part: RICH.forward(learner, part[0], jax.random.fold_in(key, part[1])),
            (microbatches, np.arange(parts)),
        )
        rows = jnp.moveaxis(found.vectors, 0, 1).reshape(B, 3, -1)
        aux = jax.tree.map(lambda x: x.sum(0), found.aux)
        terms, _ = RICH.reduce(learner, Embeddings(rows, aux), batch)
        assert terms["moe.balance_loss"].coefficient > 0
        return sum(t.coefficient * t.sum / t.weight for t in terms.values())

    run = jax.jit(compute_gradients, static_argnums=(0, 4))
    grads, loss, metrics = jax.device_get(run(RICH, learner, batch, key, parts))
    value, expected = jax.device_get(jax.jit(jax.value_and_grad(whole))(learner))
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    assert float(metrics["contrastive_nats"].weight) == B - 1
    assert abs(float(grads.head.log_temperature[...])) > 1e-4
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 + 1e-4 * np.abs(b).max())


@pytest.mark.parametrize("parts", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_eight_devices_see_the_negatives_of_all(parts):
    # covers N16
    objective = dataclasses.replace(RICH, hard_negatives=1)
    model = dataclasses.replace(MODEL, layers=("attention+mlp",), block=BlockConfig())
    learner = Trainable(tiny.model(model), objective.make_head(model, jax.random.key(1)))
    batch = batch_of(objective, rows=16, empty=(3,))
    run = jax.jit(compute_gradients, static_argnums=(0, 4))
    grads, loss, _ = run(objective, learner, batch, None, 1)
    mesh = meshes.make_mesh(meshes.MeshConfig(data=4, replica=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(learner, meshes.param_shardings(mesh, learner))
        split = {
            n: jax.device_put(a, meshes.batch_array_sharding(mesh, a.shape))
            for n, a in batch.items()
        }
        other, value, _ = run(objective, placed, split, None, parts)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, jax.device_get((grads, other))), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 + 1e-4 * np.abs(a).max())


def test_a_text_is_read_twice_under_two_draws_of_dropout():
    model = dataclasses.replace(MODEL, layers=("attention+mlp",))
    objective = Contrastive(positives="dropout")
    text = np.arange(8, dtype=np.int32)
    row = objective.make_row_fn(model, T, Tokens())([text], T, np.random.default_rng(0))
    batch = {name: np.stack([a, a]) for name, a in row.items()}
    run = jax.jit(lambda learner, key: objective.forward(learner, batch, key).vectors)
    learner = Trainable(tiny.model(model))
    x = run(learner, jax.random.key(0))
    assert len({tuple(v) for v in np.asarray(x).reshape(4, -1).tolist()}) == 4
    same = np.asarray(run(learner, None))
    np.testing.assert_allclose(same[:, 0], same[:, 1], atol=1e-6)


def test_halves_of_a_piece_keep_its_frame():
    objective = Contrastive(positives="dropout").for_eval()
    example = objective.make_row_fn(tiny.config(), T, Tokens())
    row = example([np.array([31, 1, 2, 3, 32])], T, np.random.default_rng(0))
    assert row["tokens"][0][:3].tolist() == [31, 1, 32]
    assert row["tokens"][1][:4].tolist() == [31, 2, 3, 32]
    assert example([np.array([31, 1, 32])], T, np.random.default_rng(0))["weights"] == 0


def test_hard_negatives_are_drawn_and_known_by_their_text():
    objective = Contrastive(hard_negatives=2)
    example = objective.make_row_fn(tiny.config(), T, Tokens())
    texts = [np.full(3, i, np.int32) for i in range(6)]
    drawn = [example(texts, T, np.random.default_rng(s)) for s in range(20)]
    assert {tuple(sorted(row["tokens"][2:, 0].tolist())) for row in drawn} > {(2, 3), (4, 5)}
    for row in drawn:
        assert row["tokens"][:2, 0].tolist() == [0, 1]
        for tokens, known in zip(row["tokens"][:, :3], row["text_ids"], strict=True):
            assert (hash_text(tokens) == known).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train": {"batch_size": 1}},
            "train.batch_size 1 is too small for objective contrastive.*nearest valid value: 2",
        ),
        ({"data": {"source": "text", "path": "x"}}, "data.source 'text' does not have.*jsonl"),
        ({"model": {"layers": ("mamba2+mlp",)}}, "mamba2.*bidirectional.*contrastive.view=causal"),
        ({"contrastive": {"positives": "dropout"}}, "needs dropout.*model.block.dropout=0.1"),
        ({"contrastive": {"pooling": "first", "view": "causal"}}, "pooling first.*use last"),
        (
            {"contrastive": {"positives": "split_text", "hard_negatives": 2}},
            "negatives 2.*set it to 0",
        ),
        ({"contrastive": {"projection_dim": 8}}, "projection_dim 8 needs a contrastive.projection"),
        ({"contrastive": {"temperature": 0.0}}, "temperature is 0.0, must be >= 0.01"),
        ({"train": {"seq_len": 2}}, "train.seq_len 2 holds no text"),
        (
            {"model": {"layers": ("attention+moe",), "moe": {"routing": "expert"}}}
            | {"contrastive": {"view": "causal", "pooling": "last"}},
            "contrastive reads the causal view.*moe.routing=token",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes, said):
    # covers N15 C7
    with pytest.raises(ConfigError, match=said) as error:
        with_changes(Settings(), {"objective": "contrastive", **changes})
    assert "\n" not in str(error.value)


def test_an_encoder_decoder_is_refused():
    with pytest.raises(ConfigError, match="contrastive has no input for an encoder"):
        Contrastive().row_spec(tiny.config(encoder=EncoderConfig(depth=1)), T)


def test_one_way_mixers_embed_a_text_by_its_last_token():
    """The causal view: what stands after a text changes nothing, its last token tells it."""
    model = tiny.config("mamba2", depth=1, moe=MoeConfig(num_experts=4, width=8))
    objective = Contrastive(view="causal", pooling="last")
    batch, learner = batch_of(objective, rows=2), Trainable(tiny.model(model))
    run = jax.jit(lambda learner, batch: objective.forward(learner, batch, None).vectors)
    noisy = np.where(batch["segment_ids"] == 0, 9, batch["tokens"])
    np.testing.assert_allclose(
        run(learner, batch), run(learner, batch | {"tokens": noisy}), atol=1e-5
    )
