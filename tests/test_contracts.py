"""What every part promises, for every part in the tables: naming a part is testing it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from arch import CHANNELS, Model, Sequence, cost
from arch.block import BlockConfig
from arch.embedding import EmbedConfig, HeadConfig
from arch.moe import MoeConfig
from arch.pooler import PoolerConfig
from training import mesh as meshes

EVERY = pytest.mark.parametrize(("mixer", "changes"), tiny.cases())
LENGTH = 11


@EVERY
def test_views(mixer, changes):
    """Causal: exactly no gradient from the future, and some from the past. Both: from both sides.
    Prefix: the prefix sees itself, the rest only the past. Segments never mix."""
    # covers C8
    cfg = tiny.config(mixer, **changes)
    stack = tiny.model(cfg).stack
    block = jax.tree.map(lambda a: a[0], stack.blocks[0])
    x = jax.random.normal(jax.random.key(2), (1, LENGTH, tiny.WIDTH))
    lengths = [7, 3]  # and one of padding
    document = np.repeat([1, 2, 0], [7, 3, 1])
    for view, ability in cfg.views().items():
        seq = tiny.packed(lengths, LENGTH, view)
        if stack.relative is not None:
            seq = dataclasses.replace(seq, bias=stack.relative.bias(seq.causal))
        flow = np.asarray(_influence(block, x, seq))  # [to, from]
        i, j = np.mgrid[:LENGTH, :LENGTH]
        same = (document[i] == document[j]) & (document[i] != 0)
        may = same if view == "both" else same & (j <= i)
        if view == "prefix" and ability == "full":
            may |= same & np.asarray(seq.prefix)[0][j]
        real = document != 0
        inside = np.ix_(real, real)
        assert (flow[inside][~may[inside]] == 0).all(), view
        near = may & (abs(i - j) <= 1)  # every window holds its neighbours
        assert (flow[near] != 0).all(), view
        if tiny.reach(cfg, mixer) >= LENGTH:
            assert (flow[may] != 0).all(), view


@jax.jit
def _influence(block, x, seq):
    """How much each output [T] feels each input [T]."""

    def one(x, to):
        return jnp.sum(jnp.sin(block(x, seq)[0][0, to]))

    rows = jax.vmap(jax.grad(one), (None, 0))(x, jnp.arange(LENGTH))
    return jnp.abs(rows[:, 0]).sum(-1)


@EVERY
def test_packed_documents_are_as_if_alone_and_padding_changes_nothing(mixer, changes):
    # covers N8 N17
    made = tiny.model(tiny.config(mixer, **changes))
    run = jax.jit(lambda m, t, s: m(t, s)[0])
    ids, sizes = tiny.tokens(1, LENGTH)[0], (4, 1, 3)
    starts = np.cumsum([0, *sizes])
    rows = [ids, ids.at[8:].set(7)]
    rows += [
        jnp.roll(ids, -start).at[size:].set(9) for start, size in zip(starts, sizes, strict=False)
    ]
    for view in made.config.views():
        kinds = [sizes, sizes, *((size,) for size in sizes)]
        seqs = [tiny.packed(list(kind), LENGTH, view) for kind in kinds]
        seq = jax.tree.map(lambda *a: jnp.concatenate(a), *seqs)
        whole, other, *alone = run(made, jnp.stack(rows), seq)
        np.testing.assert_array_equal(whole[:8], other[:8])
        for start, size, one in zip(starts, sizes, alone, strict=False):
            np.testing.assert_allclose(whole[start : start + size], one[:size], atol=2e-5)


@EVERY
def test_prefill_and_steps_are_the_parallel_form(mixer, changes):
    """Chunks of 4, 1, 1 and 3 tokens; the second row begins with padding."""
    made = tiny.model(tiny.config(mixer, depth=3, layers=(f"{mixer}+mlp",) * 2, **changes))
    ids, skip = tiny.tokens(2, 9), 2
    segments = jnp.ones((2, 9), jnp.int32).at[1, :skip].set(0)
    positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    whole, _, none = jax.jit(lambda m, t, s: m(t, s))(made, ids, Sequence(positions, segments))
    assert none is None
    state, at, parts = made.start(2, 9), 0, []
    run = jax.jit(lambda m, t, s, state: m(t, s, state=state))
    for size in (4, 1, 1, 3):
        cut = slice(at, at + size)
        seq = Sequence(positions[:, cut], segments[:, cut])
        hidden, _, state = run(made, ids[:, cut], seq, state)
        parts.append(hidden)
        at += size
    stepped = jnp.concatenate(parts, axis=1)
    np.testing.assert_allclose(stepped[0], whole[0], atol=2e-5)
    np.testing.assert_allclose(stepped[1, skip:], whole[1, skip:], atol=2e-5)


@pytest.mark.parametrize(("mixer", "channel"), tiny.PAIRS)
def test_scanned_unrolled_and_rematerialised_are_one_function(mixer, channel):
    cfg = tiny.config(mixer, channel, depth=5, layers=(f"{mixer}+{channel}",) * 2)
    made, ids, seq = tiny.model(cfg), tiny.tokens(1, 6), tiny.packed([6], 6)

    def both(made):
        return jax.jit(jax.value_and_grad(lambda m: jnp.mean(jnp.sin(m(ids, seq)[0]))))(made)

    value, grads = both(made)
    assert len(made.stack.last) == 1  # five layers hold two repeats and one block more
    for changes in ({"remat": "full"}, {"remat": "dots", "scan": False}):
        other, others = both(tiny.replaced(made, **changes))
        np.testing.assert_allclose(value, other, atol=1e-6)  # a mean of sines: at most 1
        check_gradients(grads, others)


@pytest.mark.parametrize(("mixer", "channel"), tiny.PAIRS)
def test_every_mesh_computes_what_one_device_does(mixer, channel):
    made = tiny.model(tiny.config(mixer, channel))
    ids, seq = tiny.tokens(8, 8), Sequence.plain(8, 8)
    run = jax.value_and_grad(lambda m, t, s: jnp.mean(m.logits(m(t, s)[0])[..., : tiny.VOCAB] ** 2))
    value, grads = jax.jit(run)(made, ids, seq)
    for sizes in ({}, {"model": 4}, {"replica": 2, "context": 2, "expert": 2}):
        mesh = meshes.build(meshes.MeshConfig(**sizes))
        with jax.set_mesh(mesh):
            placed = jax.device_put(made, meshes.layouts(mesh, made))
            other, others = jax.jit(run)(placed, *jax.device_put((ids, seq), meshes.rows(mesh)))
        np.testing.assert_allclose(value, other, rtol=1e-5)
        check_gradients(grads, others)


def check_gradients(grads, others):
    """Equal but for rounding, of each leaf by its own size."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(others), strict=True)
    for (path, a), b in pairs:
        near = 4e-5 * max(1.0, float(jnp.abs(a).max()))
        np.testing.assert_allclose(a, b, atol=near, err_msg=jax.tree_util.keystr(path))


@EVERY
def test_precision(mixer, changes):
    """float64 in gives float64 out; float32 agrees with it; bfloat16 computes in bfloat16 on
    float32 parameters, and the fast implementation agrees with the reference."""
    # covers N6
    with jax.enable_x64(True):
        cfg = tiny.config(mixer, dtype="float64", **changes)
        exact = tiny.model(cfg)
        ids, seq = tiny.tokens(1, LENGTH), tiny.packed([6, 4], LENGTH)
        wide = jax.jit(lambda m: m(ids, seq)[0])(exact)
        assert wide.dtype == jnp.float64
        assert {leaf.dtype for leaf in jax.tree.leaves(exact)} == {jnp.dtype("float64")}
        slow = jax.jit(lambda m: m(ids, seq)[0])(tiny.under(exact, tiny.slow(cfg)))
        np.testing.assert_allclose(wide[:, :10], slow[:, :10], rtol=1e-10, atol=1e-12)
    made = tiny.model(tiny.config(mixer, **changes))
    narrow = jax.jit(lambda m: m(ids, seq)[0])(made)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow[:, :10], wide[:, :10], atol=5e-5)
    half = tiny.replaced(made, dtype="bfloat16")
    hidden = jax.jit(lambda m: m(ids, seq)[0])(half)
    assert hidden.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(hidden[:, :10].astype(float), wide[:, :10], atol=0.15)


@EVERY
@pytest.mark.parametrize("length", [0, 1, 7])
def test_values_and_gradients_are_finite_and_every_parameter_gets_one(mixer, changes, length):
    made = tiny.model(tiny.config(mixer, **changes))
    view = "both" if "both" in made.config.views() else "causal"
    ids, seq = tiny.tokens(2, length), Sequence.plain(2, length, causal=view == "causal")

    def loss(m):
        return jnp.sum(jnp.sin(m.logits(m(ids, seq)[0])[..., : tiny.VOCAB]))

    value, grads = jax.jit(jax.value_and_grad(loss))(made)
    assert jnp.isfinite(value)
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
        assert jnp.isfinite(leaf).all(), path
        if length == 7 and "norm_k" not in str(path) and "b_k" not in str(path):
            assert (leaf != 0).any(), path


@EVERY
def test_cost_counts_every_leaf_and_every_multiply_add(mixer, changes):
    """Of the reference implementations, and of those that run where they say what they execute."""
    cfg = tiny.config(mixer, depth=3, layers=(f"{mixer}+mlp",) * 2, **changes, scan=False)
    check_cost(tiny.slow(cfg))


@pytest.mark.parametrize("channel", CHANNELS)
def test_cost_of_channels(channel):
    check_cost(tiny.slow(tiny.config("attention", channel, depth=3, scan=False)))


def test_cost_of_what_stands_around_the_blocks():
    """A table of another width, types, a head with a transform, a pooler, a bare first block."""
    cfg = tiny.config(
        depth=3,
        scan=False,
        first=("attention+moe",),
        embed=EmbedConfig(width=12, types=2, norm=True),
        head=HeadConfig(tied=False, bias=True, transform=True),
        pooler=PoolerConfig("first", classes=2),
        block=BlockConfig(bare_first=True),
        moe=MoeConfig(experts=4, width=8, router_bias=True, shared=1, shared_gate=True, slots=3),
    )
    check_cost(tiny.slow(cfg))


def check_cost(cfg, T=6):
    made = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0)))
    for view in cfg.views():
        bill = cost(cfg, T, view=view)
        assert bill.params == sum(leaf.size for leaf in jax.tree.leaves(made))
        ids, seq = tiny.tokens(1, T), Sequence.plain(1, T, causal=view != "both")
        jaxpr = jax.make_jaxpr(lambda m: m.logits(m(ids, seq)[0]))(made)  # noqa: B023
        matrix = sum(work.executed for work in bill.terms.values() if not work.elementwise)
        assert multiply_adds(jaxpr.jaxpr) == pytest.approx(T * matrix), view


def multiply_adds(jaxpr) -> int:
    """2 FLOPs for each product in every dot_general; a scan's body counts times its length."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * eqn.outvars[0].aval.size * math.prod(shape[d] for d in contract)
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += times * multiply_adds(inner)
    return total
