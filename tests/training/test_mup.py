"""muP: rates by the roles of parameters, equal to the standard at the base width; taps; errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from arch import MIXERS, Model
from arch.activation_taps import run_with_taps
from arch.channels.moe_config import MoeConfig
from arch.layers.embedding import EmbedConfig, HeadConfig
from arch.mixers.attention import AttentionConfig
from errors import ConfigError
from objectives import CausalLM, Contrastive
from training import mup, state
from training.checkpoint.param_names import named_leaves
from training.optimizer import OptimizerConfig, make_optimizer

# Matrices whose inputs do not follow the width: the inner side of low-rank maps.
NARROW_INPUTS = {
    "kda": {"decay.w_up", "gate.w_up"},
    "gdn2": {"decay.w_up", "gate.w_up"},
    "gla": {"decay.w_up"},
}
RATIO = 4.0


def factors_of(monkeypatch, model, objective=None, optimizer="adamw"):
    """Returns the factor of each parameter as `make_model_optimizer` computes it, and its leaf."""
    seen = {}
    monkeypatch.setattr(mup, "scale_directions", lambda tx, factors: seen.update(factors) or tx)
    objective = objective or CausalLM()
    state.make_model_optimizer(OptimizerConfig(name=optimizer), 4, model, objective)
    shapes = jax.eval_shape(lambda: state.init_trainable(model, objective, 0))
    return seen, named_leaves(shapes)


def as_mup(**changes):
    """Returns a tiny model under muP whose width is RATIO times the base width."""
    return tiny.config(**{"parametrization": "mup", "base_width": 4, "depth": 1} | changes)


@pytest.mark.parametrize("mixer", MIXERS)
def test_only_matrices_that_read_a_growing_vector_get_a_smaller_rate(mixer, monkeypatch):
    factors, leaves = factors_of(monkeypatch, as_mup(mixer=mixer, channel="moe"))
    assert factors.keys() == leaves.keys()
    for name, leaf in leaves.items():
        # Matrices of a layer are [repeat, in, out], those of experts [repeat, expert, in, out].
        part = name.partition(".mixer.")[2]
        is_matrix = leaf.ndim >= 3 and not part.endswith(("conv.w", "conv_bc.w", "log_a"))
        is_matrix &= ".convs." not in name
        expected = 1 / RATIO if is_matrix and part not in NARROW_INPUTS.get(mixer, ()) else 1.0
        assert factors[name] == pytest.approx(expected), name


def test_rates_of_muon_and_sgd_follow_their_norms(monkeypatch):
    """By hand: a matrix [16 16], one to 2 G N numbers [16 12], a vector [16], and a table."""
    names = {"both": "w_in", "inputs": "w_bc", "outputs": "norm"}
    expected = {
        "lion": {"both": 1 / 4, "inputs": 1 / 4, "outputs": 1.0},
        "muon": {"both": 1 / 2, "inputs": 1 / 4, "outputs": 1.0},
        "sgd": {"both": 1.0, "inputs": 1 / 4, "outputs": 4.0},
    }
    for optimizer, by_growth in expected.items():
        factors, _ = factors_of(monkeypatch, as_mup(mixer="mamba2"), optimizer=optimizer)
        for growth, factor in by_growth.items():
            assert factors[f"model.stack.blocks.0.mixer.{names[growth]}"] == pytest.approx(factor)
        assert factors["model.embed.table"] == (4.0 if optimizer == "sgd" else 1.0)


def test_a_pooling_query_counts_as_a_product(monkeypatch):
    objective = Contrastive(pooling="attention", projection="linear")
    factors, _ = factors_of(monkeypatch, as_mup(), objective)
    assert factors["head.query"] == factors["head.w_in"] == 1 / RATIO
    assert factors["model.stack.norm.scale"] == 1.0


@pytest.mark.parametrize("name", mup.EXPONENTS)
def test_factors_scale_directions_and_leave_weight_decay(name):
    """An update is -rate (factor direction + decay p); with a factor of 1 it has the same bits."""
    cfg = OptimizerConfig(name=name, learning_rate=0.1, schedule="constant", weight_decay=0.3)
    params = {"a": jnp.arange(1.0, 7.0).reshape(2, 3), "b": jnp.ones(2)}
    grads = {"a": jnp.array([[0.5, -1.0, 2.0], [1.0, 0.2, -0.3]]), "b": jnp.array([1.0, -2.0])}
    roles = {"a": "matrix", "b": "vector"}

    def update(factors, decay):
        plain = dataclasses.replace(cfg, weight_decay=cfg.weight_decay if decay else 0.0)
        tx = make_optimizer(plain, 4, {"a": True, "b": False}, roles)
        tx = mup.scale_directions(tx, factors) if factors else tx
        return tx.update(grads, tx.init(params), params)[0]

    standard, direction = update(None, True), update(None, False)
    same, scaled = update({"a": 1.0, "b": 1.0}, True), update({"a": 0.25, "b": 2.0}, True)
    for key in params:
        np.testing.assert_array_equal(same[key], standard[key])
    np.testing.assert_allclose(scaled["a"], 0.25 * direction["a"] - 0.03 * params["a"], rtol=1e-5)
    np.testing.assert_allclose(scaled["b"], 2.0 * direction["b"], rtol=1e-6)


def test_logits_are_divided_by_the_growth_and_so_is_what_is_exported():
    model = as_mup(head=HeadConfig(scale=0.5))
    assert model.logit_scale == 0.5 / RATIO
    standard = model.as_standard()
    assert (standard.parametrization, standard.head.scale) == ("standard", 0.125)
    assert dataclasses.replace(model, base_width=16).logit_scale == 0.5
    factorized = dataclasses.replace(model, embed=EmbedConfig(factorized_width=8))
    assert factorized.logit_scale == 0.5
    net, hidden = Model(model, key=jax.random.key(0)), jnp.ones((1, 2, tiny.WIDTH))
    logits, expected = net.logits(hidden), 0.125 * hidden @ net.embed.table[...].T
    np.testing.assert_allclose(logits[..., : tiny.VOCAB], expected[..., : tiny.VOCAB], rtol=1e-5)


def test_routers_start_smaller_in_wide_models_and_nothing_else_does():
    """By RATIO^-1/2 = 1/2, so that logits of a router have the variance 1 / m."""
    moe = {"channel": "moe", "moe": MoeConfig(shared_experts=1, shared_gate=True)}
    named = {
        parametrization: named_leaves(
            Model(as_mup(parametrization=parametrization, **moe), key=jax.random.key(0))
        )
        for parametrization in ("mup", "standard")
    }
    ratios = {
        name: float(jnp.max(jnp.abs(leaf)) / jnp.max(jnp.abs(named["standard"][name])))
        for name, leaf in named["mup"].items()
        if jnp.any(leaf)
    }
    readouts = {name for name in ratios if name.endswith(("w_router", "w_shared_gate"))}
    assert len(readouts) == 2
    assert ratios == pytest.approx({n: 0.5 if n in readouts else 1.0 for n in ratios})


def test_an_untied_readout_starts_at_zero_under_mup_alone():
    for parametrization in ("mup", "standard"):
        model = as_mup(head=HeadConfig(tied=False), parametrization=parametrization)
        table = Model(model, key=jax.random.key(0)).head.table[...]
        assert bool(jnp.any(table)) == (parametrization == "standard")


def test_scores_of_widening_heads_are_divided_by_their_width():
    cfg = AttentionConfig(base_head_dim=16)
    assert [cfg.score_scale(K) for K in (16, 64)] == [0.25, 4 / 64]
    assert AttentionConfig().score_scale(64) == 64**-0.5
    assert AttentionConfig(scale=0.3, base_head_dim=16).score_scale(64) == 0.3


def test_parts_and_optimizers_without_a_rule_are_refused(monkeypatch):
    monkeypatch.delattr(type(tiny.config().mlp), "scaled_fields")
    with pytest.raises(ConfigError, match="mlp cannot follow the width.*scaled_fields"):
        state.make_model_optimizer(OptimizerConfig(), 4, as_mup(), CausalLM())
    with pytest.raises(ConfigError, match="optimizer.name 'signum' has no rule"):
        mup.rate_factors("signum", 2.0, {}, {})


def test_taps_are_what_products_with_parameters_read_and_return():
    """Stacked layers, a cast, recomputation, a product without parameters, and one in a loop."""
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(2, 4, 3)), rng.normal(size=(3, 4))
    x = rng.normal(size=(5, 4))

    @jax.checkpoint
    def layer(x, w):
        return jnp.tanh(x @ w.astype(jnp.float32))

    def function(params):
        y = layer(x, params["w"][0]) @ params["v"]
        y = y + layer(x, params["w"][1]) @ params["v"]
        looped, _ = jax.lax.scan(
            lambda c, _: (c @ params["v"] @ params["w"][0], None), y[:, :3], None, 2
        )
        return looped, y.T @ y

    taps = jax.jit(lambda p: run_with_taps(function, p))({"w": jnp.array(w), "v": jnp.array(v)})
    first, second = np.tanh(x @ w[0]), np.tanh(x @ w[1])
    expected = {
        "w input": x,
        "w": x @ w[0],
        "v input": first,
        "v": first @ v,
        "w#1": x @ w[1],
        "v#1 input": second,
        "v#1": second @ v,
    }
    assert taps.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(taps[name], np.sqrt(np.mean(value**2)), rtol=1e-5, err_msg=name)
