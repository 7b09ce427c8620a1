"""What really runs: blocks computed again, cached representations, an objective's own weights."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from arch import Model, ModelConfig, Sequence, cost
from objectives import Contrastive, Mixture
from protocol import series
from protocol.budget import measured
from protocol.untrusted import Fields
from training import report
from training.settings import Settings

SMALL = ModelConfig(width=64, depth=2, vocab=128, scan=False)


def compiled(config, length):
    """FLOPs of forward and backward of a row, as XLA counts the program that it made."""
    model = jax.eval_shape(lambda: Model(config, key=jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(model, tokens):
        hidden, _, _ = model(tokens, Sequence.plain(1, length))
        return jnp.sum(model.logits(hidden) ** 2)

    return jax.jit(jax.grad(loss)).lower(model, tokens).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("layers", "policies"),
    [(("mamba2+mlp",), ("dots", "full")), (("attention+mlp",), ("full",))],
)
def test_what_remat_computes_again_is_what_the_compiler_runs(layers, policies):
    """XLA leaves out the last product of a block, and counts the elementwise operations."""
    plain = dataclasses.replace(SMALL, layers=layers)
    base, bill = compiled(plain, 64), cost(plain, 64)
    assert bill.recomputed_flops == 0
    for policy in policies:
        again = dataclasses.replace(plain, remat=policy)
        more = cost(again, 64).recomputed_flops / (3 * bill.executed_flops)
        assert more > 0.1
        assert 1 + more == pytest.approx(compiled(again, 64) / base, rel=0.06)


def test_the_whole_body_is_computed_again_and_the_head_is_not():
    config = dataclasses.replace(SMALL, remat="full")
    bill, plain = cost(config, 64), cost(SMALL, 64)
    assert bill.recomputed_flops == bill.executed_flops - 2 * 64 * 128
    assert (bill.model_flops, bill.executed_flops) == (plain.model_flops, plain.executed_flops)
    # dots keeps products with a weight: of attention the scores and values remain, 4 D (T + 1) / 2.
    dots = cost(dataclasses.replace(SMALL, remat="dots"), 64)
    assert dots.recomputed_flops == 2 * 4 * 64 * 65 / 2


def contrastive(**changes):
    return Settings(
        objective="contrastive",
        model=dataclasses.replace(SMALL, remat="none"),
        contrastive=Contrastive(**changes),
    )


def accumulated(settings, parts=4):
    return dataclasses.replace(
        settings, train=dataclasses.replace(settings.train, accumulate=parts)
    )


def test_cached_representations_cost_a_forward_pass_more():
    plain, forward = contrastive(), report.priced(contrastive()).executed_flops
    assert report.executed(plain) == pytest.approx(3 * forward)
    assert report.executed(accumulated(plain)) == pytest.approx(4 * forward)
    assert measured(accumulated(plain)).training_flops == measured(plain).training_flops
    added = Settings(model=SMALL)  # gradients of rows that do not meet are but added
    assert report.executed(accumulated(added)) == report.executed(added)
    both = dataclasses.replace(
        plain,
        objective="mixture",
        mixture=Mixture(parts=(("causal_lm", 1.0), ("contrastive", 1.0))),
    )
    own = measured(accumulated(both)).executed_flops - measured(both).executed_flops
    assert own == pytest.approx(measured(plain).executed_flops / 3)  # of the contrastive part
    again = dataclasses.replace(SMALL, remat="full")
    full = accumulated(dataclasses.replace(plain, model=again))
    assert report.executed(full) == pytest.approx(5 * forward)  # its head is not asked for


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("projection", ["none", "linear", "mlp"])
@pytest.mark.parametrize("learned", [False, True])
def test_an_objective_is_billed_for_its_weights(pooling, projection, learned):
    width = 0 if projection == "none" else 4096
    settings = contrastive(pooling=pooling, projection=projection, learned=learned, width=width)
    model = jax.eval_shape(lambda: Model(settings.model, key=jax.random.key(0)))
    head = jax.eval_shape(lambda: settings.contrastive.head(settings.model, jax.random.key(0)))
    leaves = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves((model, head)))
    bill, bare = report.priced(settings), report.priced(contrastive())
    assert bill.params == leaves == sum(bill.parts.values())
    assert bill.active_params - bare.active_params == leaves - bare.params
    assert (bill.body_params, bill.body_flops) == (bare.body_params, bare.body_flops)
    projected = {"none": 0, "linear": 2 * 64 * 4096, "mlp": 2 * 64 * 64 + 2 * 64 * 4096}
    length = settings.train.length
    own = projected[projection] / length + 2 * 64 * (pooling == "attention")
    assert bill.model_flops == pytest.approx(bare.model_flops + own)
    assert bill.executed_flops == pytest.approx(bare.executed_flops + own)
    texts = report.positions(settings) / length
    more = measured(settings).training_flops - measured(contrastive()).training_flops
    assert more == pytest.approx(3 * texts * own * length)


def test_a_mixture_has_the_weights_of_all_its_parts():
    parts = (("causal_lm", 1.0), ("contrastive", 1.0))
    settings = dataclasses.replace(
        contrastive(projection="linear"), objective="mixture", mixture=Mixture(parts=parts)
    )
    bill, bare = report.priced(settings), report.priced(Settings(model=SMALL))
    assert bill.params == bare.params + 64 * 64 == sum(bill.parts.values())


def test_the_column_of_the_board_is_what_ran():
    settings = accumulated(contrastive())
    said = report.summary(report.priced(settings), settings)
    found = series.amounts(Fields(said, "cost"), Fields({}, "train"), 10.0, [], {})
    assert found["executed_flops"] == pytest.approx(40 * said["executed_flops"])
    del said["executed_training_flops"]  # an older run
    found = series.amounts(Fields(said, "cost"), Fields({}, "train"), 10.0, [], {})
    assert found["executed_flops"] == pytest.approx(30 * said["executed_flops"])
