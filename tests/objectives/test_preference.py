"""Preferences: loss and gradients against float64, rows, and what the bank of references holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_stores import BOS, EOS
from oracle import VOCAB, Bigram, successor

from data.store import TokenStore
from data.store_writer import TokenStoreWriter
from data.text_rows import cut_sentence, make_row_source
from data.tokenizers import ByteTokenizer
from errors import ConfigError, DataError
from objectives import Preference, Trainable
from protocol.study.budget import match_by_steps
from settings.changes import with_changes
from settings.tree import freeze
from training.accounting import executed_flops_per_token, model_cost, run_tokens
from training.gradients import compute_gradients
from training.settings import Settings, resolve

T = 12
MODEL = Bigram(jnp.zeros((1, 1))).config
# (prompt, chosen, rejected) as ids, with the ids around them.
PAIRS = [
    ([BOS, 5, 6], [7, 8, EOS], [9, EOS]),
    ([BOS, 1], [2, 3, 4, 5, EOS], [6, 7, 8, EOS]),
    ([BOS, 9, 9, 9], [3, EOS], [8, 8, EOS]),
]


def batch_of(objective: Preference, pairs, references) -> dict[str, np.ndarray]:
    """Returns the rows of pairs, and a row of padding."""
    make_row = objective.make_row_fn(MODEL, T, ByteTokenizer())
    rng = np.random.default_rng(0)
    texts = [[np.array(text, np.int32) for text in pair] for pair in pairs]
    rows = [make_row(slices, T, rng) for slices in (*texts, [])]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"reference": np.array([*references, (0, 0)], np.float32)}


def expected(table, pairs, references, beta, normalized):
    """Returns the loss of Rafailov et al., equation 7, and its gradient, by loops in float64."""
    loss, gradient = 0.0, np.zeros_like(table)
    for (prompt, *replies), reference in zip(pairs, references, strict=True):
        rewards, slopes = [], []
        for reply, log_r in zip(replies, reference, strict=True):
            log_p, slope = 0.0, np.zeros_like(table)
            for before, token in zip([prompt[-1], *reply], reply, strict=False):
                p = np.exp(table[before] - np.log(np.exp(table[before]).sum()))
                log_p += np.log(p[token])
                slope[before] -= p
                slope[before, token] += 1
            scale = beta / (len(reply) if normalized else 1)
            rewards.append(scale * (log_p - log_r))
            slopes.append(scale * slope)
        margin = rewards[0] - rewards[1]
        loss += np.log1p(np.exp(-margin)) / len(pairs)
        gradient -= (slopes[0] - slopes[1]) / (1 + np.exp(margin)) / len(pairs)
    return loss, gradient


@pytest.mark.parametrize("normalized", [False, True])
def test_loss_and_gradients_are_those_of_the_paper(normalized):
    """A model whose next token depends on the last one; rows of two lengths and of padding."""
    table = np.random.default_rng(1).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    references = [(-9.0, -12.0), (-30.0, -20.5), (-11.0, -18.0)]
    objective = Preference(beta=0.7, length_normalized=normalized)
    loss, gradient = expected(table.astype(float), PAIRS, references, 0.7, normalized)
    batch = batch_of(objective, PAIRS, references)
    run = jax.jit(compute_gradients, static_argnums=(0, 4))
    for microbatches in (1, 2):
        grads, found, _ = run(objective, Trainable(Bigram(table)), batch, None, microbatches)
        np.testing.assert_allclose(found, loss, rtol=1e-6)
        np.testing.assert_allclose(grads.model.table, gradient, atol=1e-6)


def test_metrics_tell_rewards_from_likelihoods():
    """After "a" the model says "b"; the reference says so less often, or more often."""
    objective = Preference(beta=1.0)
    pairs = [([BOS, 97], [98], [120]), ([BOS, 97], [98], [120]), ([BOS, 97], [120], [98])]
    references = [(-5.0, -1.0), (-0.01, -20.0), (-9.0, -1.0)]
    batch = batch_of(objective, pairs, references)
    model = Trainable(Bigram(jnp.asarray(successor(), jnp.float32)))
    out = objective.forward(model, batch, None)
    _, metrics = objective.reduce(model, out, batch)
    means = {name: float(metric.mean) for name, metric in metrics.items()}
    # The likelihood of "b" is .13 and that of "x" is .0024.
    assert means["likelihood_accuracy"] == pytest.approx(2 / 3)
    assert means["reference_accuracy"] == pytest.approx(1 / 3)
    assert means["accuracy"] == pytest.approx(2 / 3)
    rewards = out.log_likelihoods[:3] - np.array(references)
    assert means["chosen_reward"] == pytest.approx(float(rewards[:, 0].mean()), rel=1e-5)
    assert means["margin"] == pytest.approx(float((rewards[:, 0] - rewards[:, 1]).mean()), rel=1e-5)


def store_of(folder, pairs) -> TokenStore:
    writer = TokenStoreWriter(folder, ByteTokenizer(), has_records=True)
    records = [([np.array(text, np.int32) for text in pair], 7) for pair in pairs]
    writer.add_records(records)
    writer.finish({})
    return TokenStore(folder)


def test_a_prompt_that_is_too_long_loses_its_beginning(tmp_path):
    """Both replies read the same prompt, only replies are scored, and their ends are."""
    # covers D16
    prompt, long = list(range(10, 20)), list(range(40, 60))
    pairs = [(prompt, [1, 2, 3], [4]), (prompt[:2], [1], [2, 3]), (prompt, long, [5])]
    store = store_of(tmp_path / "s", pairs)
    objective = Preference()
    rows = make_row_source(store, objective.row_spec(MODEL, T))
    make_row = objective.make_row_fn(MODEL, T, ByteTokenizer())
    rng = np.random.default_rng(0)
    seen = []
    for number in range(3):
        slices = rows.row(number)
        assert [item.record for item in slices] == [number] * 3
        row = make_row([item.tokens for item in slices], rows.row_length, rng)
        for i in range(2):
            is_text, is_scored = row["segment_ids"][i] == 1, row["weights"][i] == 1
            assert (row["tokens"][i][is_text][1:] == row["targets"][i][is_text][:-1]).all()
            seen.append((row["tokens"][i][is_text].tolist(), row["targets"][i][is_scored].tolist()))
    assert seen == [
        ([BOS, *prompt[2:], 1, 2, 3], [1, 2, 3, EOS]),
        ([BOS, *prompt[2:], 4], [4, EOS]),
        ([BOS, 10, 11, 1], [1, EOS]),
        ([BOS, 10, 11, 2, 3], [2, 3, EOS]),
        ([BOS, *long[:11]], long[:12]),
        ([BOS, 5], [5, EOS]),
    ]
    assert rows.row(3) == []
    assert cut_sentence(store, T) == (
        "2 of 3 preferences do not fit 12 tokens: the prompts lose their beginning, and 1 of the "
        "replies their end (train.seq_len)"
    )
    assert cut_sentence(store, 31) == ""


def test_a_store_of_other_records_is_refused(tmp_path):
    store = store_of(tmp_path / "s", [([1], [2]), ([3], [4])])
    with pytest.raises(DataError, match="holds no preferences; build the store of preferences"):
        make_row_source(store, Preference().row_spec(MODEL, T))


def test_the_bank_holds_what_the_model_says_of_each_pair():
    """Pairs in any order, in microbatches; rows of padding change nothing."""
    objective = Preference(pairs=(4, 1, 1))
    table = np.random.default_rng(1).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    model, bank = Trainable(Bigram(table)), objective.memory_bank
    batch = batch_of(objective, PAIRS, [(0, 0)] * 3)
    batch["record"][:3] = 2, 0, 3
    state = bank.init(0, {})
    filled = jax.jit(bank.add_rows, static_argnums=(2, 5))(model, state, "train", batch, 0, 2)
    assert {name: x.shape for name, x in filled.items()} == {
        "train": (4, 2),
        "valid": (1, 2),
        "test": (1, 2),
    }
    log_p = table - np.log(np.exp(table.astype(float)).sum(axis=1, keepdims=True))
    for row, (prompt, *replies) in zip((2, 0, 3), PAIRS, strict=True):
        for i, reply in enumerate(replies):
            sums = sum(log_p[a, b] for a, b in zip([prompt[-1], *reply], reply, strict=False))
            assert float(filled["train"][row, i]) == pytest.approx(float(sums), rel=1e-6)
    assert (filled["train"][1] == 0).all() and (filled["test"] == 0).all()
    _, looked_up = bank.update_and_lookup(model, filled, batch, 0, 2)
    np.testing.assert_array_equal(looked_up["reference"][:3], filled["train"][np.array([2, 0, 3])])


def test_the_number_of_pairs_is_that_of_the_data():
    def settings(**changes):
        return freeze(Settings, {"objective": "preference", "preference": changes})

    assert resolve(settings(), 365, (9, 2, 2)).get_objective().pairs == (9, 2, 2)
    assert resolve(Settings(), 365, (9, 2, 2)) == resolve(Settings(), 365)
    with pytest.raises(ConfigError, match=r"preference.pairs is \(9, 2, 2\).*have \(8, 2, 2\)"):
        resolve(settings(pairs=(9, 2, 2)), 365, (8, 2, 2))
    with pytest.raises(ConfigError, match="must be the numbers of pairs of train, valid, test"):
        settings(pairs=(9,))


def test_the_reference_is_paid_for_once():
    """A third of a training token for each token of the pairs, however long the run is."""

    def settings(steps, pairs):
        tree = {"objective": "preference", "preference": {"pairs": pairs}}
        train = {"steps": steps, "batch_size": 8, "seq_len": 32}
        return freeze(Settings, tree | {"train": train, "model": {"vocab_size": 40}})

    for steps in (10, 100):
        paid, free = settings(steps, (300, 9, 9)), settings(steps, ())
        assert run_tokens(free) == steps * 8 * 2 * 32
        assert run_tokens(paid) == run_tokens(free) + 300 * 2 * 32 / 3
        forward = model_cost(paid).executed_flops
        spent = executed_flops_per_token(paid) * run_tokens(paid)
        more = spent - executed_flops_per_token(free) * run_tokens(free)
        assert more == pytest.approx(300 * 2 * 32 * forward)


def test_steps_are_matched_although_the_reference_has_a_fixed_cost():
    """The reference reads as many tokens as 200 steps train, and costs as much as 67."""
    tree = {"objective": "preference", "preference": {"pairs": (1600, 1, 1)}}
    train = {"steps": 90, "batch_size": 8, "seq_len": 32}
    small = freeze(Settings, tree | {"train": train, "model": {"vocab_size": 40}})
    large = with_changes(small, {"model.width": 2 * small.model.width})
    runs = match_by_steps({"small": small, "large": large}, reference="large")
    assert runs[1].settings.train.steps == 90 and runs[0].settings.train.steps > 300
    assert runs[0].cost_ratios["training_flops"] == pytest.approx(1, abs=0.01)
