"""Tests of the contracts of all parts: a part named in the tables is tested here."""

import dataclasses
import functools
import inspect
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from arch import CHANNELS, MIXERS, Model, ModelConfig, SequenceInfo, compute_cost
from arch.block import BlockConfig
from arch.channels.moe import MoeConfig
from arch.layers.embedding import EmbedConfig, HeadConfig
from arch.layers.pooler import PoolerConfig
from arch.part import Part
from training import mesh as meshes

ALL_CASES = pytest.mark.parametrize(("mixer", "changes"), tiny.cases())
LENGTH = 12


@pytest.mark.parametrize("part", [*MIXERS.values(), *CHANNELS.values()], ids=lambda p: p.__name__)
def test_constructors_have_the_signature_of_the_interface(part):
    """Mypy compares the methods of parts with the interface, but not their constructors."""
    expected, actual = (inspect.signature(c.__init__).parameters for c in (Part, part))
    for name, parameter in expected.items():
        assert actual[name].replace(annotation=None) == parameter.replace(annotation=None)
    extra = [actual[name] for name in actual if name not in expected]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in extra)


# The rows of all contracts: one row of documents, the same row with other padding, each document
# by itself, one document, and one document after padding.
DOCUMENTS, SKIP = (6, 1, 4), 2
PACKED, PADDED, ALONE, WHOLE, LATE = 0, 1, slice(2, 5), 5, 6


class Rows(NamedTuple):
    """What one compiled program computes of the rows under one view."""

    hidden: np.ndarray  # [rows T D]
    influence: np.ndarray  # Gradients of the outputs of the packed row, [to, vocabulary].
    grads: Model  # Gradients of a function of the outputs of the whole document.


def contract_rows(view: str) -> tuple[np.ndarray, SequenceInfo]:
    """Returns the token ids of the rows, which differ within a row, and the rows' structure."""
    ids = np.random.default_rng(1).permutation(tiny.VOCAB)[: LENGTH + 1].astype(np.int32)
    ids, filler = ids[:LENGTH], ids[LENGTH]
    rows, kinds = [ids, ids.copy()], [DOCUMENTS, DOCUMENTS]
    rows[PADDED][sum(DOCUMENTS) :] = filler
    for start, size in zip(np.cumsum([0, *DOCUMENTS]), DOCUMENTS, strict=False):
        rows.append(np.roll(ids, -start))
        rows[-1][size:] = filler
        kinds.append((size,))
    seqs = [tiny.packed(list(kind), LENGTH, view) for kind in (*kinds, (LENGTH,), (LENGTH - SKIP,))]
    seq = jax.tree.map(lambda *a: np.concatenate(a), *seqs)
    arrays = (np.roll(a[-1:], SKIP, axis=1) for a in (seq.positions, seq.segment_ids))
    positions, segments = (
        np.concatenate([a[:-1], last])
        for a, last in zip((seq.positions, seq.segment_ids), arrays, strict=True)
    )
    seq = dataclasses.replace(seq, positions=positions, segment_ids=segments)
    return np.stack([*rows, ids, ids]), seq


@functools.cache
def run_rows(model: Model, view: str) -> Rows:
    """Runs the rows under a view; the asserts of several tests share the result."""
    ids, seq = contract_rows(view)
    noise = np.random.default_rng(2).normal(size=(LENGTH, tiny.WIDTH))
    cotangents = np.zeros((LENGTH + 1, *ids.shape, tiny.WIDTH), np.float32)
    cotangents[np.arange(LENGTH), PACKED, np.arange(LENGTH)] = noise
    cotangents[LENGTH, WHOLE] = noise
    return Rows(*jax.device_get(_run_rows(model, ids, seq, cotangents)))


@jax.jit
def _run_rows(model, ids, seq, cotangents):
    hidden, pull = jax.vjp(lambda m: m(ids, seq)[0], model)
    grads = jax.vmap(lambda cotangent: pull(cotangent)[0])(cotangents)
    influence = jnp.abs(grads.embed.table[:LENGTH]).sum(-1)
    return hidden, influence, jax.tree.map(lambda a: a[LENGTH], grads)


def read_views(cfg: ModelConfig) -> list[str]:
    """Returns the views that the model reads as they are; a "causal" prefix is no such view."""
    return [view for view, how in cfg.supported_views().items() if how == "full"]


def widest_view(cfg: ModelConfig) -> str:
    """Returns the view under which every parameter is used."""
    return "bidirectional" if "bidirectional" in read_views(cfg) else "causal"


@ALL_CASES
def test_views(mixer, changes):
    """Gradients flow exactly between the tokens that the view makes visible.

    Causal: none from the future, some from the past. Bidirectional: some from all tokens of the
    document. Prefix: the prefix sees itself, other tokens see the past. Segments never mix.
    """
    # covers C8
    cfg = tiny.config(mixer, **changes)
    document = np.repeat([1, 2, 3, 0], [*DOCUMENTS, LENGTH - sum(DOCUMENTS)])
    i, j = np.mgrid[:LENGTH, :LENGTH]
    same = (document[i] == document[j]) & (document[i] != 0)
    real = np.ix_(document != 0, document != 0)
    for view in read_views(cfg):
        ids, seq = contract_rows(view)
        influence = run_rows(tiny.model(cfg), view).influence
        flow = influence[:, ids[PACKED]]  # [to, from]
        may = same if view == "bidirectional" else same & (j <= i)
        if view == "prefix":
            may |= same & seq.is_prefix[PACKED][j]
        assert (flow[real][~may[real]] == 0).all(), view
        elsewhere = np.delete(influence, ids[PACKED], axis=1)  # Tokens that are in other rows only.
        assert (elsewhere[document != 0] == 0).all(), view
        near = may & (abs(i - j) <= 1)  # Every window includes the neighbors.
        assert (flow[near] != 0).all(), view
        if tiny.reach(cfg, mixer) >= LENGTH:
            assert (flow[may] != 0).all(), view


@ALL_CASES
def test_a_prefix_that_is_read_in_one_direction_is_the_causal_program(mixer, changes):
    # covers C8
    cfg = tiny.config(mixer, **changes)
    if cfg.supported_views().get("prefix") != "causal":
        return
    model, (ids, seq) = tiny.model(cfg), contract_rows("prefix")
    views = (seq.is_prefix, None)
    with_prefix, causal = (
        jax.make_jaxpr(lambda m, p=p: m(ids, dataclasses.replace(seq, is_prefix=p))[0])(model)
        for p in views
    )
    assert str(with_prefix) == str(causal)


@ALL_CASES
def test_packed_documents_are_as_if_alone_and_padding_changes_nothing(mixer, changes):
    # covers N8 N17
    cfg = tiny.config(mixer, **changes)
    for view in read_views(cfg):
        hidden = run_rows(tiny.model(cfg), view).hidden
        real = slice(sum(DOCUMENTS))
        np.testing.assert_array_equal(hidden[PACKED][real], hidden[PADDED][real])
        starts = np.cumsum([0, *DOCUMENTS])
        for start, size, single in zip(starts, DOCUMENTS, hidden[ALONE], strict=False):
            np.testing.assert_allclose(
                hidden[PACKED][start : start + size], single[:size], atol=2e-5
            )


@ALL_CASES
def test_prefill_and_steps_are_the_parallel_form(mixer, changes):
    """The chunks have 5, 1, 1 and 5 tokens; the second row begins with padding."""
    model, (ids, seq) = tiny.model(tiny.config(mixer, **changes)), contract_rows("causal")
    full = run_rows(model, "causal").hidden
    positions, segments = (a[WHOLE:] for a in (seq.positions, seq.segment_ids))
    state, start, parts = _empty_state(model), 0, []
    for size in (5, 1, 1, 5):
        cut = slice(start, start + size)
        chunk = SequenceInfo(positions[:, cut], segments[:, cut])
        hidden, state = _run_chunk(model, ids[WHOLE:, cut], chunk, state)
        parts.append(np.asarray(hidden))
        start += size
    stepped = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(stepped[0], full[WHOLE], atol=2e-5)
    np.testing.assert_allclose(stepped[1, SKIP:], full[LATE, SKIP:], atol=2e-5)


_empty_state = jax.jit(lambda model: model.init_state(2, LENGTH))


@jax.jit
def _run_chunk(model, ids, seq, state):
    hidden, _, state = model(ids, seq, state=state)
    return hidden, state


_value_and_grads = jax.jit(
    jax.value_and_grad(lambda m, t, s: jnp.mean(m.logits(m(t, s)[0])[..., : tiny.VOCAB] ** 2))
)


@functools.cache
def unrolled_on_one_device(model: Model):
    """Returns the value and the gradients of layers that run one after another."""
    model = tiny.replaced(model, remat="dots", scan=False)
    return jax.device_get(_value_and_grads(model, *batch_of_rows()))


def batch_of_rows() -> tuple[np.ndarray, SequenceInfo]:
    return np.asarray(tiny.tokens(8, 8)), SequenceInfo.unpacked(8, 8)


def check_mesh(cfg, sizes, **changes):
    """Compares a mesh with one device on which the layers run one after another."""
    value, grads = unrolled_on_one_device(tiny.model(cfg))
    model = tiny.replaced(tiny.model(cfg), **changes)
    mesh = meshes.make_mesh(meshes.MeshConfig(**sizes))
    with jax.set_mesh(mesh):
        placed = jax.device_put(model, meshes.param_shardings(mesh, model))
        rows = jax.device_put(batch_of_rows(), meshes.batch_sharding(mesh))
        other, others = jax.device_get(_value_and_grads(placed, *rows))
    np.testing.assert_allclose(value, other, rtol=1e-5)
    check_gradients(grads, others)


@pytest.mark.parametrize(("mixer", "channel"), tiny.PAIRS)
def test_a_scan_that_rematerialises_on_a_mesh_is_the_unrolled_model_on_one_device(mixer, channel):
    """`test_context.py` does the same for recurrences in the default suite."""
    sizes = {"context": 2, "expert": 2, "model": 2}
    check_mesh(tiny.config(mixer, channel), sizes, remat="full")


MESHES = ({"model": 4}, {"replica": 2, "context": 2, "expert": 2})


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize(
    ("mixer", "channel"),
    [*((mixer, "mlp") for mixer in MIXERS), *(("attention", c) for c in CHANNELS if c != "mlp")],
)
def test_every_mesh_computes_what_one_device_does(mixer, channel, sizes):
    check_mesh(tiny.config(mixer, channel), sizes)


@pytest.mark.slow
@pytest.mark.parametrize(("channel", "remat"), [("mlp", "full"), ("moe", "none")])
def test_a_prefix_repeats_and_a_suffix_are_the_unrolled_layers(channel, remat):
    layers = (f"attention+{channel}", "mamba2+none")
    cfg = tiny.config(depth=6, first_layers=layers[:1], layers=layers)
    assert len(tiny.model(cfg).stack.last) == 1  # One layer, two repeats of two, and one.
    check_mesh(cfg, {}, remat=remat)


def check_gradients(grads, others):
    """Compares gradients leaf by leaf, with a tolerance relative to the largest value."""
    grads, others = jax.device_get((grads, others))
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(others), strict=True)
    for (path, a), b in pairs:
        near = 4e-5 * max(1.0, float(np.abs(a).max()))
        np.testing.assert_allclose(a, b, atol=near, err_msg=jax.tree_util.keystr(path))


@ALL_CASES
def test_precision(mixer, changes):
    """Each dtype computes in itself, and all agree with the reference implementation in float64.

    bfloat16 computes in bfloat16 on float32 parameters.
    """
    # covers N6
    cfg = tiny.config(mixer, **changes)
    exact = exact_hidden(mixer, changes, tiny.slow)
    narrow = run_rows(tiny.model(cfg), "causal").hidden[PACKED]
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow[: len(exact)], exact, atol=5e-5)
    half = tiny.replaced(tiny.model(cfg), dtype="bfloat16")
    hidden = np.asarray(_forward(half, *packed_row()))
    assert hidden.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    difference = hidden[0, : len(exact)].astype(float) - exact
    assert np.sqrt(np.mean(difference**2)) < 0.06 * np.sqrt(np.mean(exact**2))


@pytest.mark.slow
@ALL_CASES
def test_the_default_implementation_is_the_reference_in_float64(mixer, changes):
    exact = exact_hidden(mixer, changes, tiny.slow)
    np.testing.assert_allclose(
        exact_hidden(mixer, changes, lambda cfg: cfg), exact, rtol=1e-10, atol=1e-12
    )


_forward = jax.jit(lambda model, ids, seq: model(ids, seq)[0])


def packed_row() -> tuple[np.ndarray, SequenceInfo]:
    return jax.tree.map(lambda a: a[PACKED : PACKED + 1], contract_rows("causal"))


def exact_hidden(mixer, changes, implementation) -> np.ndarray:
    """Returns the outputs of the documents of the packed row in float64."""
    with jax.enable_x64(True):
        cfg = tiny.config(mixer, dtype="float64", **changes)
        model = tiny.under(tiny.model(cfg), implementation(cfg))
        assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float64")}
        hidden = np.asarray(_forward(model, *packed_row()))
    assert hidden.dtype == np.float64
    return hidden[0, : sum(DOCUMENTS)]


@ALL_CASES
def test_values_and_gradients_are_finite_and_every_parameter_gets_one(mixer, changes):
    cfg = tiny.config(mixer, **changes)
    for view in read_views(cfg):
        assert np.isfinite(run_rows(tiny.model(cfg), view).hidden).all(), view
    grads = run_rows(tiny.model(cfg), widest_view(cfg)).grads
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        if "norm_k" not in str(path) and "b_k" not in str(path):
            assert (leaf != 0).any(), path


@ALL_CASES
@pytest.mark.parametrize("length", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_short_rows_have_finite_values_and_gradients(mixer, changes, length):
    model = tiny.model(tiny.config(mixer, **changes))
    is_causal = widest_view(model.config) == "causal"
    seq = SequenceInfo.unpacked(2, length, causal=is_causal)

    @jax.jit
    def run(model):
        def loss(m):
            ids = jnp.zeros((2, length), jnp.int32)
            return jnp.sum(jnp.sin(m.logits(m(ids, seq)[0])[..., : tiny.VOCAB]))

        return jax.value_and_grad(loss)(model)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(run(model))))


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
