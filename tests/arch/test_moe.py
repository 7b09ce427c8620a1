"""Tests of routing and of the Mixture of Experts channel, against goldens and loops."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from golden import golden

from arch import SequenceInfo
from arch.channels import routing
from arch.channels.moe import MoE, MoeConfig
from arch.channels.routing import ExpertGroups, Routes
from arch.part_cost import CostContext
from errors import ConfigError
from training import mesh as meshes
from training.runner import _router_sentences
from training.settings import Settings

D, F = 8, 12
BASE = MoeConfig(num_experts=4, width=F, min_capacity=0)


def make_moe(cfg: MoeConfig, seed: int = 0) -> MoE:
    """Returns a module with random parameters, so that no scale is 1 and no bias is 0."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: MoE(D, cfg, key=jax.random.key(0))))
    rng = np.random.default_rng(seed)
    leaves = [np.asarray(0.5 * rng.normal(size=x.shape), x.dtype) for x in leaves]
    return jax.tree.unflatten(tree, leaves)


def noise(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense(routes: Routes, experts: int) -> np.ndarray:
    """Returns the weights of routes as a table [B T E]."""
    routes = jax.device_get(routes)
    table = np.zeros((*routes.experts.shape[:2], experts))
    for b, t, k in np.ndindex(routes.experts.shape):
        if (e := int(routes.experts[b, t, k])) < experts:
            table[b, t, e] += float(routes.weights[b, t, k])
    return table


GOLDENS = {case: (options, tensors) for case, options, tensors in golden("moe_routing")}


@functools.cache
def golden_results() -> dict[str, Any]:
    """Returns the routes, or the mean balance losses, of all cases from one compiled program."""

    def run_case(name: str):
        return run_balance(name) if name == "load_balancing" else run_routing(name)

    with jax.enable_x64(True):
        return jax.device_get(jax.jit(lambda: {name: run_case(name) for name in GOLDENS})())


def run_routing(name: str) -> Routes:
    options, tensors = GOLDENS[name]
    logits = jnp.asarray(tensors["logits"])
    logits = logits if logits.ndim == 3 else logits[None]
    real = jnp.ones(logits.shape[:2], bool)
    E, k = logits.shape[2], options.get("k", 1)
    score = routing.router_scores(logits, "sigmoid" if "v3" in name else "softmax")
    best = 2 if "v3" in name else 1
    groups = ExpertGroups(options.get("groups", 1), options.get("keep", 1), best)
    bias = jnp.asarray(tensors["bias"]) if "bias" in tensors else None
    chosen = routing.top_k_experts(score, k, bias=bias, groups=groups)
    renormalise, scale = options.get("renormalise", False), options.get("scale", 1.0)
    routes = routing.token_choice(score, chosen, real, normalize=renormalise, scale=scale)
    if "capacity" in options:
        routes = routing.drop_over_capacity(routes, options["capacity"], E)
    return routes


def run_balance(name: str) -> dict[str, jax.Array]:
    (options, tensors), losses = GOLDENS[name], {}
    logits = jnp.asarray(tensors["logits"])[None]
    score = routing.router_scores(logits, "softmax")
    for mask, loss in ((np.ones(40), "loss"), (tensors["token_mask"], "loss_masked")):
        real = jnp.asarray(mask != 0)[None]
        chosen = routing.top_k_experts(score, options["k"])
        routes = routing.token_choice(score, chosen, real, normalize=True)
        metrics = routing.router_metrics(logits, score, routes, routes, real, options["k"])
        losses[loss] = metrics["moe.balance_loss"].mean
    return losses


@pytest.mark.parametrize("name", GOLDENS)
def test_routing_goldens(name):
    actual, tensors = golden_results()[name], GOLDENS[name][1]
    if name == "load_balancing":
        for loss, value in actual.items():
            np.testing.assert_allclose(value, tensors[loss][0], rtol=1e-12)
        return
    assert actual.weights.dtype == np.float64
    combine = tensors["combine"]
    routes = dense(actual, combine.shape[-1]).reshape(combine.shape)
    np.testing.assert_allclose(routes, combine, rtol=1e-12, atol=1e-14)


def test_statistics_are_those_of_a_loop_and_leave_padding_out():
    rng = np.random.default_rng(0)
    logits, real = rng.normal(size=(2, 6, 4)), np.array([[1] * 5 + [0], [1] * 6]) == 1
    logits[..., 2] -= 9.0  # No token chooses expert 2.

    @jax.jit
    def run(rows):
        score = routing.router_scores(rows, "softmax")
        all_routes = routing.token_choice(
            score, routing.top_k_experts(score, 2), real, normalize=True
        )
        kept_routes = routing.drop_over_capacity(all_routes, 2, 4)
        metrics = routing.router_metrics(rows, score, all_routes, kept_routes, real, 2)
        return {name: (metric.mean, metric.weight) for name, metric in metrics.items()}

    by_noise = [
        jax.device_get(run(np.float32(logits + noise_on_padding * ~real[..., None])))
        for noise_on_padding in (0.0, 50.0)
    ]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    load, dropped = np.zeros(4), 0
    for b in range(2):
        row = np.zeros(4)
        for t in range(6):
            for e in np.argsort(-p[b, t], kind="stable")[:2] if real[b, t] else ():
                load[e] += 1
                row[e] += 1
                dropped += row[e] > 2
    share, n = load / load.sum(), real.sum()
    expected = {
        "balance_loss": 4 * (load / n * p[real].mean(0)).sum(),
        "z_loss": (np.log(np.exp(logits).sum(-1)) ** 2)[real].mean(),
        "load_entropy": -(share[share > 0] * np.log(share[share > 0])).sum() / math.log(4),
        "max_load": load.max() / load.mean(),
        "dropped": dropped / load.sum(),
        "dead": (load == 0).mean(),
        "confidence": p.max(-1)[real].mean(),
    }
    assert expected["dropped"] > 0 and expected["dead"] == 0.25
    for metrics in by_noise:
        assert {name: float(weight) for name, (_, weight) in metrics.items()} == {
            f"moe.{name}": 11.0 for name in expected
        }
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[f"moe.{name}"][0], value, rtol=1e-5, err_msg=name)


def test_a_batch_of_padding_is_no_loss_and_no_gradient():
    # covers N9
    module = make_moe(dataclasses.replace(BASE, bias_update_rate=0.1))
    seq = SequenceInfo(np.zeros((1, 3), np.int32), np.zeros((1, 3), np.int32))

    def loss(module):
        y, aux = module(noise(1, 3, D), seq)
        return jnp.sum(y) + sum(a.mean for a in aux.values())

    value, grads = jax.device_get(jax.jit(jax.value_and_grad(loss))(module))
    assert float(value) == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_ties_go_to_the_lower_expert_and_the_earlier_token():
    # covers N13
    score = np.full((1, 4, 8), 0.125, np.float32)
    run = jax.jit(functools.partial(routing.top_k_experts, top_k=3), static_argnames="groups")
    for groups in (ExpertGroups(), ExpertGroups(4, 2, 2)):
        chosen = run(score, groups=groups)
        np.testing.assert_array_equal(chosen, np.broadcast_to([0, 1, 2], (1, 4, 3)))
    taken = dense(
        jax.jit(routing.expert_choice, static_argnums=2)(score, np.ones((1, 4), int), 2), 8
    )
    np.testing.assert_array_equal(taken[0].any(-1), [True, False, False, False])


@pytest.mark.parametrize(
    ("capacity", "T", "min_capacity", "expected"),
    [
        (1.25, 16, 0, 10),
        (1.1, 20, 0, 11),
        (1.0, 5, 0, 3),
        (1.0, 1, 4, 1),
        (9.0, 8, 0, 8),
        (1e308, 8, 0, 8),
        (0.1, 8, 4, 4),
    ],
)
def test_slots(capacity, T, min_capacity, expected):
    """The experts are 4, of which a token uses 2; the capacity is at most T."""
    assert routing.expert_capacity(capacity, 2, T, 4, min_capacity) == expected


def test_capacity_is_first_come_first_served_in_each_row_alone():
    # covers N12
    rng = np.random.default_rng(0)
    ids = np.array([[rng.permutation(4)[:2] for _ in range(9)] for _ in range(3)])
    ids[0] = [2, 0]  # All tokens choose expert 2.
    run = jax.jit(routing.drop_over_capacity, static_argnums=(1, 2))
    routes = jax.device_get(run(Routes(ids, np.ones(ids.shape, np.float32)), 3, 4))
    for b in range(3):
        count = np.zeros(4, int)
        for t in range(9):
            for k, e in enumerate(ids[b, t]):
                count[e] += 1
                is_kept = count[e] <= 3
                assert int(routes.experts[b, t, k]) == (e if is_kept else 4)
                assert float(routes.weights[b, t, k]) == float(is_kept)


def test_evaluation_drops_nothing_and_knows_no_neighbours():
    cfg = dataclasses.replace(BASE, capacity_factor=0.5, router_jitter=0.2)
    module, x = make_moe(cfg), noise(4, 6, D)
    run = jax.jit(lambda m, x, key: m(x, SequenceInfo.unpacked(*x.shape[:2]), key=key))
    full, aux = run(module, x, None)
    assert float(aux["moe.dropped"].sum) == 0
    for b in range(4):
        np.testing.assert_allclose(run(module, x[b : b + 1], None)[0][0], full[b], atol=1e-5)
    np.testing.assert_allclose(run(module, x[:, 2:3], None)[0], full[:, 2:3], atol=1e-5)
    free = jax.tree.unflatten(
        jax.tree.structure(make_moe(dataclasses.replace(cfg, capacity_factor=0.0))),
        jax.tree.leaves(module),
    )
    np.testing.assert_allclose(run(free, x, None)[0], full, atol=1e-6)
    trained, aux = run(module, x, jax.random.key(0))
    assert float(aux["moe.dropped"].mean) > 0.2
    jittered, _ = run(module, x, jax.random.key(1))
    assert not np.allclose(trained, jittered, atol=1e-3)


def test_capacity_gives_the_same_in_every_implementation():
    cfg = dataclasses.replace(BASE, capacity_factor=0.75, gated=False, bias=True)
    x, key, base = noise(2, 8, D), jax.random.key(3), make_moe(cfg)

    def run(name):
        other = make_moe(dataclasses.replace(cfg, implementation=name))
        other = jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(base))

        def loss(m):
            y, aux = m(x, SequenceInfo.unpacked(2, 8), key=key)
            return jnp.sum(jnp.sin(y)) + aux["moe.z_loss"].mean, aux

        return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(other))

    (value, aux), grads = run("reference")
    assert float(aux["moe.dropped"].sum) > 0
    for name in ("auto", "blocks"):
        (other, _), others = run(name)
        np.testing.assert_allclose(other, value, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_expert_choice_is_even_in_each_document():
    rng = np.random.default_rng(0)
    score = rng.random((2, 12, 4))
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12])
    run = jax.jit(functools.partial(routing.expert_choice, top_k=2, scale=0.5))
    routes = run(jnp.asarray(score), jnp.asarray(segments))
    expected = np.zeros(score.shape)
    for b in range(2):
        for document in set(segments[b]) - {0}:
            tokens = np.flatnonzero(segments[b] == document)
            for e in range(4):
                order = np.argsort(-score[b, tokens, e], kind="stable")
                for t in tokens[order[: len(tokens) * 2 // 4]]:
                    expected[b, t, e] = 0.5 * score[b, t, e]
    np.testing.assert_allclose(dense(routes, 4), expected, rtol=1e-6)


@pytest.mark.parametrize("choice", ["token", "expert"])
def test_packed_documents_are_as_if_alone(choice):
    # covers N8
    module = make_moe(dataclasses.replace(BASE, routing=choice, shared_experts=1))
    assert "bidirectional" in MoE.supported_views(module.cfg)
    assert "causal" not in MoE.supported_views(dataclasses.replace(BASE, routing="expert"))
    x = noise(11, D)
    seqs = [tiny.packed(sizes, 11, "bidirectional") for sizes in ([4, 6], [4], [6])]
    seq = jax.tree.map(lambda *a: np.concatenate(a), *seqs)
    rows = np.stack([x, x, np.roll(x, -4, axis=0)])
    full, first, second = jax.jit(lambda m, x, s: m(x, s)[0])(module, rows, seq)
    np.testing.assert_allclose(full[:4], first[:4], atol=1e-5)
    np.testing.assert_allclose(full[4:10], second[:6], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 9}, "moe.top_k 9 is above moe.num_experts 8; nearest valid value: 8"),
        ({"top_k": 0}, "MoeConfig.top_k is 0, must be >= 1"),
        ({"num_experts": 0}, "MoeConfig.num_experts is 0, must be >= 1"),
        ({"capacity_factor": -1.0}, "MoeConfig.capacity_factor is -1.0, must be >= 0"),
        (
            {"n_groups": 3},
            "moe.n_groups 3 does not divide moe.num_experts 8; choose one of 1, 2, 4, 8",
        ),
        (
            {"n_groups": 2, "top_groups": 3},
            "moe.top_groups 3 is above moe.n_groups 2; nearest valid value: 2",
        ),
        (
            {"n_groups": 4, "top_groups": 1, "top_k": 3},
            "above the 2 experts .* nearest valid value: 2",
        ),
        (
            {"n_groups": 8, "top_groups": 2},
            "moe.group_score_top_k 2 is above the 1 experts .* nearest valid value: 1",
        ),
        (
            {"routing": "expert", "capacity_factor": 1.0},
            "moe.capacity_factor 1.0 has no meaning .* set it to 0.0",
        ),
        ({"routing": "expert", "bias_update_rate": 0.1}, "moe.bias_update_rate 0.1 has no meaning"),
        ({"router_activation": "softmin"}, "did you mean 'softmax'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes, message):
    # covers C13
    with pytest.raises(ConfigError, match=message) as caught:
        MoeConfig(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("top_k", "normalizes"), [(1, True), (1, False), (2, True)])
def test_a_router_that_the_loss_cannot_train_says_so(activation, top_k, normalizes):
    """The normalized weight of one expert is 1, whatever the router's logits are."""
    cfg = dataclasses.replace(
        BASE, top_k=top_k, normalize_weights=normalizes, router_activation=activation
    )
    logits = noise(1, 3, cfg.num_experts)

    def weights(logits):
        score = routing.router_scores(logits, activation)
        experts = routing.top_k_experts(score, top_k)
        mask = jnp.ones((1, 3), bool)
        return routing.token_choice(score, experts, mask, normalize=normalizes).weights[0, 0, 0]

    is_trained = bool((jnp.abs(jax.grad(weights)(logits)) > 1e-6).any())
    assert is_trained is not cfg.has_constant_weights
    sentences = [*_router_sentences(Settings(model=tiny.config("attention", "moe", moe=cfg)))]
    assert len(sentences) == cfg.has_constant_weights
    assert all("set model.moe.normalize_weights to false" in text for text in sentences)


CONFIGS = {
    "Mixtral": BASE,
    "Switch": dataclasses.replace(
        BASE, top_k=1, normalize_weights=False, gated=False, capacity_factor=1.0
    ),
    "DeepSeek-V3": dataclasses.replace(
        BASE,
        router_activation="sigmoid",
        route_scale=2.5,
        n_groups=2,
        top_groups=1,
        shared_experts=2,
        bias_update_rate=0.1,
    ),
    "expert choice": dataclasses.replace(
        BASE, routing="expert", bias=True, shared_experts=1, shared_width=5
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_is_counted_and_learns(name):
    cfg = CONFIGS[name]
    module, x = make_moe(cfg), noise(2, 8, D)
    coefficients = MoE.aux_losses(cfg)

    def loss(module):
        y, aux = module(x, SequenceInfo.unpacked(2, 8), key=jax.random.key(0))
        assert set(coefficients) <= set(aux)
        return jnp.sum(jnp.sin(y)) + sum(c * aux[n].mean for n, c in coefficients.items())

    grads = jax.device_get(jax.jit(jax.grad(loss))(module))
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert (leaf != 0).any() and np.isfinite(leaf).all(), path
    cost = MoE.cost(D, cfg, CostContext(8))
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(module))
    expert = cost.params - cost.active_params
    assert expert == (cfg.num_experts - cfg.top_k) * (
        (2 + cfg.gated) * D * F + cfg.bias * (2 * F + D)
    )
    assert cost.terms["router"].model == 2 * D * cfg.num_experts
    ffn = 2 * (2 + cfg.gated) * D * F
    assert cost.terms["routed"].model == cfg.top_k * ffn


def test_executed_work_of_each_implementation():
    ffn = 6 * D * F

    def routed(**changes):
        return (
            MoE.cost(D, dataclasses.replace(BASE, **changes), CostContext(16))
            .terms["routed"]
            .executed
        )

    assert routed() == 2 * ffn == routed(implementation="blocks", capacity_factor=1.25)
    assert routed(capacity_factor=1.25) == 1.25 * 2 * ffn
    assert routed(implementation="reference", capacity_factor=1.25) == 4 * ffn


def test_routing_is_computed_in_float32_at_least():
    module, x = make_moe(BASE), noise(1, 6, D)
    seq = SequenceInfo.unpacked(1, 6)
    run = jax.jit(lambda m, x: (*m(x, seq), m.route(x, seq, None)[0]))
    half, aux, routes = run(module, x.astype("bfloat16"))
    assert half.dtype == jnp.bfloat16
    assert {a.sum.dtype for a in aux.values()} == {jnp.dtype("float32")}
    assert routes.weights.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype("float64"), module)
        y, aux, _ = run(wide, x.astype("float64"))
        assert y.dtype == aux["moe.z_loss"].sum.dtype == jnp.float64
    np.testing.assert_allclose(y, run(module, x)[0], atol=1e-5)


@pytest.mark.parametrize(
    "sizes",
    [
        {"context": 2, "expert": 2, "model": 2},
        pytest.param({"expert": 4, "data": 2}, marks=pytest.mark.slow),
    ],
)
def test_routing_and_statistics_are_the_same_on_every_mesh(sizes):
    cfg = dataclasses.replace(CONFIGS["DeepSeek-V3"], capacity_factor=0.75)
    module, x = make_moe(cfg), noise(8, 8, D)
    seq = SequenceInfo.unpacked(8, 8)

    def loss(module, x, seq):
        y, aux = module(x, seq, key=jax.random.key(0))
        return jnp.sum(jnp.sin(y)) + sum(a.mean for a in aux.values()), aux

    run = jax.jit(jax.grad(loss, has_aux=True))
    grads, aux = run(module, x, seq)
    assert float(aux["moe.dropped"].sum) > 0
    mesh = meshes.make_mesh(meshes.MeshConfig(**sizes))
    with jax.set_mesh(mesh):
        placed = jax.device_put(module, meshes.param_shardings(mesh, module))
        others, other_aux = run(placed, *jax.device_put((x, seq), meshes.batch_sharding(mesh)))
    for a, b in zip(
        jax.tree.leaves((others, other_aux)), jax.tree.leaves((grads, aux)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
