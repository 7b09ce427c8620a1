"""Tests of executed FLOPs: rematerialization, cached representations, objectives' weights."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest

from arch import Model, ModelConfig, SequenceInfo, compute_cost
from objectives import Contrastive, MixtureConfig
from protocol.records import series
from protocol.records.safe_read import CheckedFields
from protocol.study.budget import compute_run_costs
from training import accounting
from training.settings import Settings

SMALL = ModelConfig(width=64, depth=2, vocab_size=128, scan=False)


@functools.cache
def compiled(config, length):
    """Returns XLA's count of the FLOPs of the forward and backward passes of one row."""
    model = jax.eval_shape(lambda: Model(config, key=jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(model, tokens):
        hidden, _, _ = model(tokens, SequenceInfo.unpacked(1, length))
        return jnp.sum(model.logits(hidden) ** 2)

    return jax.jit(jax.grad(loss)).lower(model, tokens).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("layer", "policy"),
    [
        ("mamba2+mlp", "dots"),
        ("attention+mlp", "full"),
        pytest.param("mamba2+mlp", "full", marks=pytest.mark.slow),
    ],
)
def test_what_remat_computes_again_is_what_the_compiler_runs(layer, policy):
    """XLA omits the last product of a block, and counts elementwise operations."""
    plain = dataclasses.replace(SMALL, layers=(layer,))
    base, cost = compiled(plain, 64), compute_cost(plain, 64)
    assert cost.recomputed_flops == 0
    config = dataclasses.replace(plain, remat=policy)
    extra = compute_cost(config, 64).recomputed_flops / (3 * cost.executed_flops)
    assert extra > 0.1
    assert 1 + extra == pytest.approx(compiled(config, 64) / base, rel=0.06)


def test_the_whole_body_is_computed_again_and_the_head_is_not():
    config = dataclasses.replace(SMALL, remat="full")
    cost, plain = compute_cost(config, 64), compute_cost(SMALL, 64)
    assert cost.recomputed_flops == cost.executed_flops - 2 * 64 * 128
    assert (cost.model_flops, cost.executed_flops) == (plain.model_flops, plain.executed_flops)
    # dots repeats only the scores and values of attention, 4 D (T + 1) / 2 per layer.
    dots = compute_cost(dataclasses.replace(SMALL, remat="dots"), 64)
    assert dots.recomputed_flops == 2 * 4 * 64 * 65 / 2


def contrastive(**changes):
    return Settings(
        objective="contrastive",
        model=dataclasses.replace(SMALL, remat="none"),
        contrastive=Contrastive(**changes),
    )


def accumulated(settings, parts=4):
    return dataclasses.replace(
        settings, train=dataclasses.replace(settings.train, grad_accum_steps=parts)
    )


def test_cached_representations_cost_a_forward_pass_more():
    plain, forward = contrastive(), accounting.model_cost(contrastive()).executed_flops
    assert accounting.executed_flops_per_token(plain) == pytest.approx(3 * forward)
    assert accounting.executed_flops_per_token(accumulated(plain)) == pytest.approx(4 * forward)
    assert (
        compute_run_costs(accumulated(plain)).training_flops
        == compute_run_costs(plain).training_flops
    )
    # Objectives whose loss is a sum over rows only add gradients.
    added = Settings(model=SMALL)
    assert accounting.executed_flops_per_token(
        accumulated(added)
    ) == accounting.executed_flops_per_token(added)
    mixture = dataclasses.replace(
        plain,
        objective="mixture",
        mixture=MixtureConfig(parts=(("causal_lm", 1.0), ("contrastive", 1.0))),
    )
    extra = (
        compute_run_costs(accumulated(mixture)).executed_flops
        - compute_run_costs(mixture).executed_flops
    )
    # Only the contrastive part caches representations.
    assert extra == pytest.approx(compute_run_costs(plain).executed_flops / 3)
    remat = dataclasses.replace(SMALL, remat="full")
    full = accumulated(dataclasses.replace(plain, model=remat))
    # The contrastive objective computes no logits, so all of the model is repeated.
    assert accounting.executed_flops_per_token(full) == pytest.approx(5 * forward)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("projection", ["none", "linear", "mlp"])
@pytest.mark.parametrize("learned", [False, True])
def test_an_objective_is_billed_for_its_weights(pooling, projection, learned):
    width = 0 if projection == "none" else 4096
    settings = contrastive(
        pooling=pooling, projection=projection, learn_temperature=learned, projection_dim=width
    )
    model = jax.eval_shape(lambda: Model(settings.model, key=jax.random.key(0)))
    head = jax.eval_shape(lambda: settings.contrastive.make_head(settings.model, jax.random.key(0)))
    leaves = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves((model, head)))
    cost, bare = accounting.model_cost(settings), accounting.model_cost(contrastive())
    assert cost.params == leaves == sum(cost.parts.values())
    assert cost.active_params - bare.active_params == leaves - bare.params
    assert (cost.non_embedding_params, cost.non_embedding_flops) == (
        bare.non_embedding_params,
        bare.non_embedding_flops,
    )
    projected = {"none": 0, "linear": 2 * 64 * 4096, "mlp": 2 * 64 * 64 + 2 * 64 * 4096}
    length = settings.train.seq_len
    head_flops = projected[projection] / length + 2 * 64 * (pooling == "attention")
    assert cost.model_flops == pytest.approx(bare.model_flops + head_flops)
    assert cost.executed_flops == pytest.approx(bare.executed_flops + head_flops)
    texts = accounting.run_tokens(settings) / length
    extra = (
        compute_run_costs(settings).training_flops - compute_run_costs(contrastive()).training_flops
    )
    assert extra == pytest.approx(3 * texts * head_flops * length)


def test_a_mixture_has_the_weights_of_all_its_parts():
    parts = (("causal_lm", 1.0), ("contrastive", 1.0))
    settings = dataclasses.replace(
        contrastive(projection="linear"), objective="mixture", mixture=MixtureConfig(parts=parts)
    )
    cost, bare = accounting.model_cost(settings), accounting.model_cost(Settings(model=SMALL))
    assert cost.params == bare.params + 64 * 64 == sum(cost.parts.values())


def test_the_column_of_the_board_is_what_ran():
    settings = accumulated(contrastive())
    recorded = accounting.cost_record(accounting.model_cost(settings), settings)
    costs = series.read_costs(
        CheckedFields(recorded, "cost"), CheckedFields({}, "train"), 10.0, [], {}
    )
    assert costs["executed_flops"] == pytest.approx(40 * recorded["executed_flops"])
    del recorded["executed_training_flops"]  # Older runs do not have it.
    costs = series.read_costs(
        CheckedFields(recorded, "cost"), CheckedFields({}, "train"), 10.0, [], {}
    )
    assert costs["executed_flops"] == pytest.approx(30 * recorded["executed_flops"])
