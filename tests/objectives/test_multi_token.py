"""Tests of multi-token prediction: what its modules predict, and what they cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_contracts import multiply_adds
from test_objectives import Words, learns

from arch import Model, SequenceInfo
from arch.channels.moe import MoeConfig
from errors import ConfigError
from objectives import CausalLM, Trainable
from objectives.multi_token import run_modules

OBJECTIVE = CausalLM(mtp_depth=2, mtp_coefficient=0.5)
LENGTH, SIZES = 12, (7, 2, 1)  # Tokens of the documents, without the end that is predicted.


def make_trainable(cfg) -> Trainable:
    return Trainable(tiny.model(cfg), OBJECTIVE.make_head(cfg, jax.random.key(1)))


def packed_batch() -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Returns documents, each with its end, and a batch of two rows that has them twice."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, tiny.VOCAB, size + 1).astype(np.int32) for size in SIZES]
    make_row = OBJECTIVE.make_row_fn(tiny.config(), LENGTH, Words())
    rows = [make_row(order, LENGTH, rng) for order in (documents, documents[::-1])]
    return documents, {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def losses_of(trainable: Trainable, document: np.ndarray) -> list[float]:
    """Returns the loss of the model and of each module on one document, by the definition."""
    model, modules = trainable
    n, losses, hidden = len(document) - 1, [], None
    for k in range(min(1 + len(modules), n)):
        seq, count = SequenceInfo.unpacked(1, n - k), n - k  # Predicts tokens k + 1 to n.
        tokens = jnp.asarray(document[None, k : k + count])
        embedded = model.embed(tokens, seq, jnp.float32, None)
        if k == 0:
            hidden = model(tokens, seq)[0]
        else:
            module, a = modules[k - 1], hidden[:, :count]
            pair = module.norm_hidden(a), module.norm_embedded(embedded)
            hidden = module.stack(jnp.concatenate(pair, -1) @ module.w_in[...], seq)[0]
        log_p = jax.nn.log_softmax(model.logits(hidden)[0])
        losses.append(-float(sum(log_p[i, document[i + k + 1]] for i in range(count))))
    return losses


def test_rows_without_a_token_so_far_ahead_are_refused():
    with pytest.raises(ConfigError, match="mtp_depth is 2, but rows of .* 2 .* nearest: 1"):
        OBJECTIVE.row_spec(tiny.config(), 2)
    OBJECTIVE.row_spec(tiny.config(), 3)


def test_modules_predict_later_tokens_of_the_same_document():
    """The packed loss is the sum over documents alone; every weight of a module has a gradient."""
    cfg = tiny.config(layers=("gated_conv+none", "attention+mlp"))
    trainable, (documents, batch) = make_trainable(cfg), packed_batch()

    def loss(trainable):
        terms, _ = OBJECTIVE.reduce(trainable, OBJECTIVE.forward(trainable, batch, None), batch)
        return sum(t.coefficient * t.sum / t.weight for t in terms.values()), terms

    (value, terms), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)
    expected, counts = np.zeros(3), np.zeros(3)
    for document in documents:
        losses = losses_of(trainable, document)
        expected[: len(losses)] += losses
        counts += np.maximum(len(document) - 1 - np.arange(3), 0)
    names = ["nats", "mtp1_nats", "mtp2_nats"]
    np.testing.assert_allclose([terms[n].sum for n in names], 2 * expected, rtol=1e-5)
    np.testing.assert_array_equal([terms[n].weight for n in names], 2 * counts)
    means = expected / counts
    np.testing.assert_allclose(value, means[0] + 0.5 * (means[1] + means[2]) / 2, rtol=1e-5)
    assert all((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(grads.head))


def test_evaluation_has_only_the_next_token():
    evaluated = OBJECTIVE.for_eval()
    assert evaluated == CausalLM() and set(OBJECTIVE.term_weights(packed_batch()[1])) == {
        *evaluated.term_weights(packed_batch()[1]),
        "mtp1_nats",
        "mtp2_nats",
    }


@pytest.mark.parametrize("layers", [("attention+mlp",), ("attention+moe", "gla+none")])
def test_modules_are_billed_by_parameters_and_products(layers):
    cfg = tiny.slow(tiny.config(depth=3, layers=layers, scan=False))
    trainable = jax.eval_shape(
        lambda: Trainable(
            Model(cfg, key=jax.random.key(0)), OBJECTIVE.make_head(cfg, jax.random.key(1))
        )
    )
    cost = OBJECTIVE.row_spec(cfg, 6).extra_cost
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(trainable.head))
    terms = dict(cost.terms)
    logits = terms.pop("mtp.head.logits")
    assert terms["mtp.in"].model == 2 * 2 * 2 * tiny.WIDTH**2  # Two modules, 2 D to D.
    assert (logits.model, logits.executed) == (2 * 2 * 16 * 40, 2 * 2 * 16 * 128)

    def run(trainable):
        hidden, tokens = jnp.zeros((1, 6, tiny.WIDTH)), jnp.zeros((1, 6), jnp.int32)
        rows = hidden, tokens, SequenceInfo.unpacked(1, 6), None
        return run_modules(trainable.head, trainable.model, *rows)

    products = sum(flops.executed for flops in terms.values() if not flops.elementwise)
    assert multiply_adds(jax.make_jaxpr(run)(trainable).jaxpr) == pytest.approx(6 * products)


@pytest.mark.slow
def test_a_model_with_experts_learns_with_modules():
    """The experts of the modules have their own balance loss."""
    cfg = tiny.config("attention", "moe", width=32, moe=MoeConfig(num_experts=4, width=16))
    learns(OBJECTIVE, dataclasses.replace(cfg), tiny.model(cfg))
