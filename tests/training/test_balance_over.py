"""A balance loss over the batch is the same in microbatches, is billed, and makes one row."""

import dataclasses
import json

import board_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from arch.channels.moe import MoeConfig
from arch.config import EncoderConfig
from errors import ConfigError
from objectives import (
    CausalLM,
    Contrastive,
    Denoising,
    DummyTokenizer,
    Mixture,
    MixturePart,
    Trainable,
)
from protocol.records.load import load_records
from training import accounting
from training.gradients import compute_gradients
from training.settings import Settings, TrainConfig
from training.state import init_trainable

BATCH, LENGTH, PARTS = 8, 12, 4
MOE = MoeConfig(num_experts=4, width=8, balance_loss=1.0, balance_over="batch")
MIXTURE = Mixture((MixturePart("a", CausalLM()), MixturePart("b", Contrastive(), 0.5)))


def rows_of(objective, model) -> dict[str, np.ndarray]:
    """Rows of texts of different lengths, so that microbatches differ in their weights."""
    if isinstance(objective, Mixture):
        batches = ((part, rows_of(part.objective, model)) for part in objective.parts)
        return {part.label(n): rows for part, batch in batches for n, rows in batch.items()}
    rng, spec = np.random.default_rng(0), objective.row_spec(model, LENGTH)
    make_row = objective.make_row_fn(model, LENGTH, DummyTokenizer(model.vocab_size))
    made = []
    for row in range(BATCH):
        texts = [rng.integers(0, 9, 3 + row).astype(np.int32) for _ in range(spec.n_texts)]
        made.append(make_row(texts, spec.text_length, rng))
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


def in_float64(model, objective) -> Trainable:
    """Parameters that do not depend on the program that uses them."""
    trainable = jax.jit(init_trainable, static_argnums=(0, 1))(model, objective, 0)
    return jax.tree.map(lambda x: x.astype(np.float64), jax.device_get(trainable))


def gradients(objective, trainable, batch, num_parts: int, key=None):
    """The gradients, the loss and the metrics."""
    run = jax.jit(compute_gradients, static_argnums=(0, 4))
    return jax.device_get(run(objective, trainable, batch, key, num_parts))


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        (CausalLM(), {}),
        pytest.param(MIXTURE, {}, marks=pytest.mark.slow),
        pytest.param(
            *(Denoising(), {"encoder": EncoderConfig(depth=1, layers=("attention+moe",))}),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["causal_lm", "mixture", "encoder-decoder"],
)
def test_microbatches_have_the_balance_loss_of_the_batch(objective, changes):
    """A part of the mixture counts the load in a pass of its own, the other caches embeddings."""
    with jax.enable_x64(True):
        model = tiny.config("attention", "moe", moe=MOE, dtype="float64", **changes)
        args = objective, in_float64(model, objective), rows_of(objective, model)
        grads, loss, metrics = gradients(*args, 1)
        other_grads, other_loss, other_metrics = gradients(*args, PARTS)
    np.testing.assert_allclose(other_loss, loss, rtol=0, atol=1e-10)
    for a, b in zip(jax.tree.leaves(other_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    balances = [name for name in metrics if name.endswith("balance_loss")]
    assert len(balances) == (1 if isinstance(objective, CausalLM) else 2)
    for name in balances:
        np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-10)


@pytest.mark.slow
def test_both_passes_have_the_same_random_routes():
    """Loss and gradients are those of the sum of the microbatches' reports, as a loop forms it."""
    objective = CausalLM()
    with jax.enable_x64(True):
        moe = dataclasses.replace(MOE, router_jitter=0.9)
        model = tiny.config("attention", "moe", moe=moe, dtype="float64")
        key, batch = jax.random.key(3), rows_of(objective, model)

        def loss_fn(trainable):
            """Reduces the outputs of all microbatches at once, with their reports added up."""
            outs = []
            for i in range(PARTS):
                micro = {name: jnp.asarray(rows[i::PARTS]) for name, rows in batch.items()}
                outs.append(objective.forward(trainable, micro, jax.random.fold_in(key, i)))
            aux = jax.tree.map(lambda *x: sum(x), *(out.aux for out in outs))
            scores = [out._replace(aux={}) for out in outs]
            whole = jax.tree.map(lambda *x: jnp.concatenate(x), *scores)
            order = np.argsort(np.concatenate([np.arange(BATCH)[i::PARTS] for i in range(PARTS)]))
            whole = jax.tree.map(lambda x: x[order], whole)._replace(aux=aux)
            terms, _ = objective.reduce(trainable, whole, batch)
            return sum(t.coefficient * t.sum / jnp.maximum(t.weight, 1) for t in terms.values())

        trainable = in_float64(model, objective)
        loss, grads = jax.device_get(jax.jit(jax.value_and_grad(loss_fn))(trainable))
        other_grads, other_loss, _ = gradients(objective, trainable, batch, PARTS, key)
    np.testing.assert_allclose(other_loss, loss, rtol=0, atol=1e-10)
    for a, b in zip(jax.tree.leaves(other_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


def test_counting_the_load_of_the_batch_is_billed_as_a_forward_pass_without_logits():
    def flops(parts: int, **changes) -> float:
        moe = dataclasses.replace(MOE, **changes)
        model = tiny.config("attention", "moe", moe=moe)
        train = TrainConfig(batch_size=BATCH, seq_len=LENGTH, grad_accum_steps=parts)
        settings = Settings(model=model, train=train)
        extra = accounting.executed_flops_per_token(settings)
        cost = accounting.model_cost(settings)
        return (extra - 3 * cost.executed_flops) / (
            cost.executed_flops - 2 * tiny.WIDTH * model.padded_vocab_size
        )

    assert flops(PARTS) == pytest.approx(1)
    for free in (flops(1), flops(PARTS, balance_over="microbatch"), flops(PARTS, balance_loss=0.0)):
        assert free == pytest.approx(0)


def test_layers_with_different_experts_have_no_balance_loss_over_the_batch():
    layers = {"layers": ("attention+moe", "attention+moe@b"), "moe": MOE}
    for changes in ({"num_experts": 8}, {"balance_over": "microbatch"}):
        with pytest.raises(ConfigError, match="'batch' needs an equal balance_over.*'microbatch'"):
            tiny.config(variants={"b": changes}, **layers)
    assert tiny.config(variants={"b": {"width": 4}}, **layers).balances_batch()


def test_microbatches_make_no_other_row_where_the_balance_is_over_the_batch(tmp_path):
    def identity(scope: str, parts: int) -> str:
        moe = {"balance_loss": 0.01, "balance_over": scope}
        train = {"grad_accum_steps": parts, "steps": 100, "batch_size": 4, "seq_len": 64}
        root = tmp_path / f"{scope}{parts}"
        model = {"layers": ["attention+moe"], "moe": moe}
        board_runs.run(root / "a", "moe", model=model, train=train)
        event = {"event": "settings_changed", "changes": {"train.grad_accum_steps": [parts, 8]}}
        with open(root / "a/events.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")
        ((record,), _) = load_records([root])
        assert bool(record.exclusions) == (scope == "microbatch"), record.exclusions
        return record.identity

    whole = identity("batch", 1)
    assert whole == identity("batch", 4) == identity("microbatch", 1)
    assert whole != identity("microbatch", 4) != identity("microbatch", 2)
