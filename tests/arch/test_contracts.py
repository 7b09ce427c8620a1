"""Tests of the contracts of all parts: a part named in the tables is tested here."""

import dataclasses
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from arch import CHANNELS, MIXERS, Model, SequenceInfo, compute_cost
from arch.block import BlockConfig
from arch.channels.moe import MoeConfig
from arch.layers.embedding import EmbedConfig, HeadConfig
from arch.layers.pooler import PoolerConfig
from arch.part import Part
from training import mesh as meshes

ALL_CASES = pytest.mark.parametrize(("mixer", "changes"), tiny.cases())
LENGTH = 11


@pytest.mark.parametrize("part", [*MIXERS.values(), *CHANNELS.values()], ids=lambda p: p.__name__)
def test_constructors_have_the_signature_of_the_interface(part):
    """Mypy compares the methods of parts with the interface, but not their constructors."""
    expected, actual = (inspect.signature(c.__init__).parameters for c in (Part, part))
    for name, parameter in expected.items():
        assert actual[name].replace(annotation=None) == parameter.replace(annotation=None)
    extra = [actual[name] for name in actual if name not in expected]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in extra)


@ALL_CASES
def test_views(mixer, changes):
    """Gradients flow exactly between the tokens that the view makes visible.

    Causal: none from the future, some from the past. Bidirectional: some from all tokens of the
    document. Prefix: the prefix sees itself, other tokens see the past. Segments never mix.
    """
    # covers C8
    cfg = tiny.config(mixer, **changes)
    stack = tiny.model(cfg).stack
    block = jax.tree.map(lambda a: a[0], stack.blocks[0])
    x = jax.random.normal(jax.random.key(2), (1, LENGTH, tiny.WIDTH))
    lengths = [7, 3]  # One token of padding follows.
    document = np.repeat([1, 2, 0], [7, 3, 1])
    for view, ability in cfg.supported_views().items():
        seq = tiny.packed(lengths, LENGTH, view)
        if stack.relative is not None:
            seq = dataclasses.replace(seq, attn_bias=stack.relative.make_bias(seq.causal))
        flow = np.asarray(_influence(block, x, seq))  # [to, from]
        i, j = np.mgrid[:LENGTH, :LENGTH]
        same = (document[i] == document[j]) & (document[i] != 0)
        may = same if view == "bidirectional" else same & (j <= i)
        if view == "prefix" and ability == "full":
            may |= same & np.asarray(seq.is_prefix)[0][j]
        real = document != 0
        inside = np.ix_(real, real)
        assert (flow[inside][~may[inside]] == 0).all(), view
        near = may & (abs(i - j) <= 1)  # Every window includes the neighbors.
        assert (flow[near] != 0).all(), view
        if tiny.reach(cfg, mixer) >= LENGTH:
            assert (flow[may] != 0).all(), view


@jax.jit
def _influence(block, x, seq):
    """Returns how much each output depends on each input, [T T]."""

    def output(x, to):
        return jnp.sum(jnp.sin(block(x, seq)[0][0, to]))

    rows = jax.vmap(jax.grad(output), (None, 0))(x, jnp.arange(LENGTH))
    return jnp.abs(rows[:, 0]).sum(-1)


@ALL_CASES
def test_packed_documents_are_as_if_alone_and_padding_changes_nothing(mixer, changes):
    # covers N8 N17
    model = tiny.model(tiny.config(mixer, **changes))
    run = jax.jit(lambda m, t, s: m(t, s)[0])
    ids, sizes = tiny.tokens(1, LENGTH)[0], (4, 1, 3)
    starts = np.cumsum([0, *sizes])
    rows = [ids, ids.at[8:].set(7)]
    rows += [
        jnp.roll(ids, -start).at[size:].set(9) for start, size in zip(starts, sizes, strict=False)
    ]
    for view in model.config.supported_views():
        kinds = [sizes, sizes, *((size,) for size in sizes)]
        seqs = [tiny.packed(list(kind), LENGTH, view) for kind in kinds]
        seq = jax.tree.map(lambda *a: jnp.concatenate(a), *seqs)
        full, other, *separate = run(model, jnp.stack(rows), seq)
        np.testing.assert_array_equal(full[:8], other[:8])
        for start, size, single in zip(starts, sizes, separate, strict=False):
            np.testing.assert_allclose(full[start : start + size], single[:size], atol=2e-5)


@ALL_CASES
def test_prefill_and_steps_are_the_parallel_form(mixer, changes):
    """The chunks have 4, 1, 1 and 3 tokens; the second row begins with padding."""
    model = tiny.model(tiny.config(mixer, depth=3, layers=(f"{mixer}+mlp",) * 2, **changes))
    ids, skip = tiny.tokens(2, 9), 2
    segments = jnp.ones((2, 9), jnp.int32).at[1, :skip].set(0)
    positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    full, _, none = jax.jit(lambda m, t, s: m(t, s))(model, ids, SequenceInfo(positions, segments))
    assert none is None
    state, start, parts = model.init_state(2, 9), 0, []
    run = jax.jit(lambda m, t, s, state: m(t, s, state=state))
    for size in (4, 1, 1, 3):
        cut = slice(start, start + size)
        seq = SequenceInfo(positions[:, cut], segments[:, cut])
        hidden, _, state = run(model, ids[:, cut], seq, state)
        parts.append(hidden)
        start += size
    stepped = jnp.concatenate(parts, axis=1)
    np.testing.assert_allclose(stepped[0], full[0], atol=2e-5)
    np.testing.assert_allclose(stepped[1, skip:], full[1, skip:], atol=2e-5)


@pytest.mark.parametrize(("mixer", "channel"), tiny.PAIRS)
def test_scanned_unrolled_and_rematerialised_are_one_function(mixer, channel):
    cfg = tiny.config(mixer, channel, depth=5, layers=(f"{mixer}+{channel}",) * 2)
    model, ids, seq = tiny.model(cfg), tiny.tokens(1, 6), tiny.packed([6], 6)

    def value_and_grads(model):
        return jax.jit(jax.value_and_grad(lambda m: jnp.mean(jnp.sin(m(ids, seq)[0]))))(model)

    value, grads = value_and_grads(model)
    assert len(model.stack.last) == 1  # Five layers: two repeats and a suffix.
    for changes in ({"remat": "full"}, {"remat": "dots", "scan": False}):
        other, others = value_and_grads(tiny.replaced(model, **changes))
        np.testing.assert_allclose(value, other, atol=1e-6)  # The mean of sines is at most 1.
        check_gradients(grads, others)


@pytest.mark.parametrize(("mixer", "channel"), tiny.PAIRS)
def test_every_mesh_computes_what_one_device_does(mixer, channel):
    model = tiny.model(tiny.config(mixer, channel))
    ids, seq = tiny.tokens(8, 8), SequenceInfo.unpacked(8, 8)
    run = jax.value_and_grad(lambda m, t, s: jnp.mean(m.logits(m(t, s)[0])[..., : tiny.VOCAB] ** 2))
    value, grads = jax.jit(run)(model, ids, seq)
    for sizes in ({}, {"model": 4}, {"replica": 2, "context": 2, "expert": 2}):
        mesh = meshes.make_mesh(meshes.MeshConfig(**sizes))
        with jax.set_mesh(mesh):
            placed = jax.device_put(model, meshes.param_shardings(mesh, model))
            other, others = jax.jit(run)(
                placed, *jax.device_put((ids, seq), meshes.batch_sharding(mesh))
            )
        np.testing.assert_allclose(value, other, rtol=1e-5)
        check_gradients(grads, others)


def check_gradients(grads, others):
    """Compares gradients leaf by leaf, with a tolerance relative to the largest value."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(others), strict=True)
    for (path, a), b in pairs:
        near = 4e-5 * max(1.0, float(jnp.abs(a).max()))
        np.testing.assert_allclose(a, b, atol=near, err_msg=jax.tree_util.keystr(path))


@ALL_CASES
def test_precision(mixer, changes):
    """Each dtype computes in itself, and all agree with float64.

    bfloat16 computes in bfloat16 on float32 parameters. The default implementation agrees with the
    reference.
    """
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
    model = tiny.model(tiny.config(mixer, **changes))
    narrow = jax.jit(lambda m: m(ids, seq)[0])(model)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow[:, :10], wide[:, :10], atol=5e-5)
    half = tiny.replaced(model, dtype="bfloat16")
    hidden = jax.jit(lambda m: m(ids, seq)[0])(half)
    assert hidden.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(hidden[:, :10].astype(float), wide[:, :10], atol=0.15)


@ALL_CASES
@pytest.mark.parametrize("length", [0, 1, 7])
def test_values_and_gradients_are_finite_and_every_parameter_gets_one(mixer, changes, length):
    model = tiny.model(tiny.config(mixer, **changes))
    view = "bidirectional" if "bidirectional" in model.config.supported_views() else "causal"
    ids, seq = tiny.tokens(2, length), SequenceInfo.unpacked(2, length, causal=view == "causal")

    def loss(m):
        return jnp.sum(jnp.sin(m.logits(m(ids, seq)[0])[..., : tiny.VOCAB]))

    value, grads = jax.jit(jax.value_and_grad(loss))(model)
    assert jnp.isfinite(value)
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
        assert jnp.isfinite(leaf).all(), path
        if length == 7 and "norm_k" not in str(path) and "b_k" not in str(path):
            assert (leaf != 0).any(), path


@ALL_CASES
def test_cost_counts_every_leaf_and_every_multiply_add(mixer, changes):
    """The cost of the reference implementations agrees with the parameters and the products."""
    cfg = tiny.config(mixer, depth=3, layers=(f"{mixer}+mlp",) * 2, **changes, scan=False)
    check_cost(tiny.slow(cfg))


@pytest.mark.parametrize("channel", CHANNELS)
def test_cost_of_channels(channel):
    check_cost(tiny.slow(tiny.config("attention", channel, depth=3, scan=False)))


def test_cost_of_what_stands_around_the_blocks():
    """A factorized table, token types, a head with a transform, a pooler, no first norm."""
    cfg = tiny.config(
        depth=3,
        scan=False,
        first_layers=("attention+moe",),
        embed=EmbedConfig(factorized_width=12, token_types=2, norm=True),
        head=HeadConfig(tied=False, bias=True, mlm_transform=True),
        pooler=PoolerConfig("first", num_classes=2),
        block=BlockConfig(skip_first_norm=True),
        moe=MoeConfig(
            num_experts=4,
            width=8,
            router_bias=True,
            shared_experts=1,
            shared_gate=True,
            expert_capacity=3,
        ),
    )
    check_cost(tiny.slow(cfg))


def check_cost(cfg, T=6):
    model = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0)))
    for view in cfg.supported_views():
        cost = compute_cost(cfg, T, view=view)
        assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(model))
        ids, seq = tiny.tokens(1, T), SequenceInfo.unpacked(1, T, causal=view != "bidirectional")
        jaxpr = jax.make_jaxpr(lambda m: m.logits(m(ids, seq)[0]))(model)  # noqa: B023
        matrix = sum(flops.executed for flops in cost.terms.values() if not flops.elementwise)
        assert multiply_adds(jaxpr.jaxpr) == pytest.approx(T * matrix), view


def multiply_adds(jaxpr) -> int:
    """Counts 2 FLOPs per product in every dot_general; a scan's body counts for each iteration."""
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
