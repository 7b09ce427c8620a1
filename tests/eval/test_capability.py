"""Tests probes: their rows against solvers of the rule, and the results of training."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from arch import compute_cost
from arch.channels.moe import MoeConfig
from arch.config import EncoderConfig
from arch.layers.embedding import HeadWeights
from arch.layers.positions import PositionsConfig
from errors import ConfigError
from eval.capability import PROBES
from eval.capability import __main__ as command
from eval.capability.copying import Copying, SelectiveCopying
from eval.capability.examples import PAD, make_batch
from eval.capability.learning import (
    TEST_STREAM,
    VALID_STREAM,
    Budget,
    ProbeAccuracy,
    adapt_model,
    batch_arrays,
    evaluate_probe,
    run_probe,
)
from eval.capability.recall import Induction, Mqar, Needle
from eval.capability.tasks import BUDGETS, CapabilityTask
from eval.capability.tracking import ModularArithmetic, Parity
from eval.harness import TASKS
from objectives import Trainable
from settings.cli import load_config
from settings.tree import freeze
from training.settings import Settings

ROWS, LENGTH = 64, 32


def make_rows(name, method="make_test_batch", seed=0, rows=ROWS, length=LENGTH):
    return getattr(PROBES[name], method)(np.random.default_rng(seed), rows, length)


# A solver maps a row, up to and including the token of the question, to the answer. Each solver is
# written from the definition of the probe, for one row at a time.


def mqar(probe, row):
    for i in range(0, 2 * probe.num_pairs, 2):
        if row[i] == row[-1]:
            return row[i + 1]
    raise AssertionError("a key that no pair has")


def induction(probe, row):
    (position,) = [i for i in range(len(row) - 1) if row[i] == probe.vocab_size - 1]
    return row[position + 1]


def needle(probe, row):
    mark, question = probe.vocab_size - 2, probe.vocab_size - 1
    return row[row.index(mark) + len(row) - row.index(question)]


def copying(probe, row):
    copy = row.index(probe.vocab_size - 1)
    return row[len(row) - 1 - copy]


def selective_copying(probe, row):
    blank, mark = probe.vocab_size - 2, probe.vocab_size - 1
    letters = [x for x in row if x not in (blank, mark)]
    return letters[row.count(mark) - 1]


def parity(probe, row):
    return 2 if row.count(2) % 2 else 1


def modular(probe, row):
    plus, minus, times = (probe.base + i for i in (1, 2, 3))
    terms, signs = [[row[0] - 1]], [1]
    for sign, number in zip(row[1::2], row[2::2], strict=True):
        if sign == times:
            terms[-1].append(number - 1)
        else:
            assert sign in (plus, minus)
            terms.append([number - 1])
            signs.append(1 if sign == plus else -1)
    value = sum(s * int(np.prod(t, dtype=object)) for s, t in zip(signs, terms, strict=True))
    return 1 + value % probe.base


SOLVERS = {
    f.__name__: f for f in (mqar, induction, needle, copying, selective_copying, parity, modular)
}


@pytest.mark.parametrize("method", ["make_test_batch", "make_train_batch"])
@pytest.mark.parametrize("name", PROBES)
def test_a_solver_that_knows_the_rule_answers_every_question(name, method):
    probe, rows = PROBES[name], make_rows(name, method)
    assert rows.tokens.shape == rows.targets.shape == rows.weights.shape == (ROWS, LENGTH)
    assert {*np.unique(rows.weights)} <= {0, 1}
    assert ((rows.targets != PAD) == (rows.weights == 1)).all()
    assert rows.tokens.min() >= 0 and rows.tokens.max() < probe.vocab_size
    assert rows.weights.sum(axis=1).max() <= probe.max_questions(LENGTH)
    for row, position in zip(*np.nonzero(rows.weights), strict=True):
        prefix = rows.tokens[row, : position + 1].tolist()
        assert PAD not in prefix
        assert rows.targets[row, position] == SOLVERS[name](probe, prefix)


@pytest.mark.parametrize("name", PROBES)
def test_rows_are_a_function_of_the_seed_alone(name):
    a, b, c = make_rows(name), make_rows(name), make_rows(name, seed=1)
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert (a.tokens != c.tokens).any()


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("length", [17, 32])
def test_who_has_not_read_the_row_does_no_better_than_chance(name, length):
    """Guesses the most common answer of many rows for as many other rows."""
    first, second = (make_rows(name, seed=s, rows=4000, length=length) for s in (0, 1))
    guess = np.bincount(first.targets[first.weights == 1]).argmax()
    answers = second.targets[second.weights == 1]
    chance = PROBES[name].chance_accuracy(length)
    error = np.sqrt(chance * (1 - chance) / len(answers))
    assert abs(np.mean(answers == guess) - chance) < 4 * error + 0.002


def test_examples_ask_once_a_row_where_lessons_ask_everywhere():
    for probe in (Parity(), ModularArithmetic()):
        for length in (1, 2, 9, 10):
            test = probe.make_test_batch(np.random.default_rng(0), 5, length)
            train = probe.make_train_batch(np.random.default_rng(0), 5, length)
            assert (test.tokens == train.tokens).all()
            assert (test.weights.sum(axis=1) == 1).all()
            assert (train.weights.sum(axis=1) == probe.max_questions(length)).all()
            last = np.flatnonzero(train.weights[0])[-1]
            assert test.weights[:, last].all()


def test_copies_of_lessons_have_every_length_and_padding_behind():
    rows = make_rows("copying", "make_train_batch", rows=400)
    copied = rows.weights.sum(axis=1)
    assert {*copied} == {*range(1, LENGTH // 2 + 1)}
    assert ((rows.tokens != PAD).sum(axis=1) == 2 * copied).all()
    assert (make_rows("copying").weights.sum(axis=1) == LENGTH // 2).all()


def test_keys_come_again_mostly_soon():
    """With exponent 1 all gaps are equally likely, with .01 the smallest is the most common."""
    for exponent, low, high in ((0.01, 0.35, 0.60), (1.0, 0.08, 0.17)):
        probe = Mqar(num_pairs=1, gap_exponent=exponent)
        rows = probe.make_test_batch(np.random.default_rng(0), 2000, 18)
        positions = np.nonzero(rows.weights)[1]
        assert {*positions} == {*range(2, 18, 2)}
        assert low < np.mean(positions == 2) < high


def test_the_law_of_the_places_is_the_stated_one():
    probe = Mqar(num_pairs=1, gap_exponent=0.5)
    rows = probe.make_test_batch(np.random.default_rng(0), 20_000, 10)
    shares = np.bincount((np.nonzero(rows.weights)[1] - 2) // 2) / 20_000
    law = np.array([r**-0.5 for r in (1, 2, 3, 4)])
    assert np.abs(shares - law / law.sum()).max() < 0.015


@pytest.mark.parametrize(
    ("probe", "length", "word"),
    [
        (Mqar(num_pairs=5), 16, "mqar.num_pairs 5 must be at most 4"),
        (Mqar(num_pairs=3, num_values=2), 64, "at most 2"),
        (Induction(), 2, "at least 3"),
        (Needle(), 8, "at least 9"),
        (Copying(), 1, "at least 2"),
        (SelectiveCopying(), 15, "at most 7"),
        (Parity(), 0, "at least 1"),
    ],
)
def test_rows_too_short_are_refused(probe, length, word):
    with pytest.raises(ConfigError, match=word):
        probe.make_test_batch(np.random.default_rng(0), 2, length)


def test_rows_as_a_batch_have_no_document_where_padding_is():
    batch = batch_arrays(
        make_batch(np.array([[3, 2, 0], [1, 1, 1]]), np.array([[0, 3, 0], [0, 0, 1]]))
    )
    assert batch["segment_ids"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["positions"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert batch["weights"].tolist() == [[0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("right", "questions", "low", "high"),
    # Tables of exact limits; 0 and n of n: 1 - (alpha/2)^(1/n).
    [
        (0, 10, 0.0, 0.3085),
        (10, 10, 0.6915, 1.0),
        (5, 10, 0.1871, 0.8129),
        (81, 263, 0.2527, 0.3676),
    ],
)
def test_the_interval_is_the_exact_binomial_one(right, questions, low, high):
    result = ProbeAccuracy(8, right, questions, 0.0)
    assert result.confidence_interval() == pytest.approx((low, high), abs=5e-5)
    assert result.accuracy == right / questions


class Oracle(NamedTuple):
    """Computes the parity, and returns logits that differ by `gap`."""

    gap: jax.Array

    def __call__(self, tokens, seq, *, key=None):
        answer = 1 + jnp.cumsum(tokens == 2, axis=1) % 2
        return jax.nn.one_hot(answer, 3), {}, None

    def features(self, hidden):
        return hidden

    def head_weights(self):
        return HeadWeights(self.gap * jnp.eye(3), None, 3, 1.0, 0.0)


@pytest.mark.parametrize(("gap", "accuracy"), [(2.0, 1.0), (-2.0, 0.0)])
def test_answers_are_counted_once_and_by_their_log_probability(gap, accuracy):
    trainable = Trainable(Oracle(jnp.float32(gap)))
    # Long rows are evaluated one by one. Short rows are padded, and their last batch is cut.
    long = evaluate_probe(trainable, Parity(), 9000, 3, TEST_STREAM)
    short = evaluate_probe(trainable, Parity(), 9, 300, VALID_STREAM, 200)
    assert (long.n_questions, short.n_questions) == (3, 300)
    assert long.accuracy == short.accuracy == accuracy
    nats = np.log(np.exp(gap) + 2) - gap
    assert [long.nats, short.nats] == pytest.approx([nats, nats], rel=1e-5)


def test_a_model_gets_the_vocabulary_of_the_probe_and_a_place_for_every_token():
    table = PositionsConfig(learned=True, max_length=8)
    model = adapt_model(tiny.config(positions=table, encoder=EncoderConfig(depth=1)), Parity(), 99)
    assert (model.vocab_size, model.positions.max_length, model.encoder.depth) == (3, 99, 0)
    assert (model.width, model.depth, model.layers) == (tiny.WIDTH, 2, ("attention+mlp",))


def test_an_architecture_that_does_not_read_from_the_left_is_refused():
    moe = MoeConfig(num_experts=4, width=8, routing="expert")
    with pytest.raises(ConfigError, match="cannot be causal"):
        adapt_model(tiny.config(channel="moe", moe=moe), Parity(), 9)


EASY = Budget(
    steps=40,
    batch_size=8,
    train_length=1,
    test_lengths=(1,),
    learning_rates=(1e-9, 2e-2),
    seeds=2,
    test_rows=64,
)


def test_the_rate_of_least_loss_is_taken_and_the_architecture_learns():
    """A row of one bit is its own parity."""
    result = run_probe(tiny.config(depth=1), Parity(), EASY)
    assert result.learning_rate == 2e-2
    assert result.tuning_losses[2e-2] < 0.1 < 0.5 < result.tuning_losses[1e-9]
    assert len(result.runs) == 2 and result.runs[0] != result.runs[1]
    for ((run,),) in zip(result.runs, strict=True):
        assert (run.seq_len, run.n_questions, run.accuracy) == (1, 64, 1.0) and run.nats < 0.1
    ctx = SimpleNamespace(settings=Settings(model=tiny.config(depth=1)))
    scores = {s.name: s for s in CapabilityTask("parity", budget=EASY)(ctx)}
    assert {*scores} == {
        "parity/accuracy@1",
        "parity/answer_nats@1",
        "parity/chance@1",
        "parity/learning_rate",
        "parity/flops",
    }
    # Two rates and two seeds: 40 steps of 8 rows, of which a step costs three forward passes, and
    # 64 rows to score. A row is one token.
    model = adapt_model(tiny.config(depth=1), Parity(), 1)
    forward = compute_cost(model, 1, logit_fraction=1).model_flops
    assert scores["parity/flops"].value == pytest.approx(4 * (3 * 40 * 8 + 64) * forward)
    assert scores["parity/accuracy@1"][1:] == (1.0, 64)
    assert (
        scores["parity/answer_nats@1"].value == result.runs[-1][0].nats
    )  # Training is deterministic.
    assert scores["parity/chance@1"].value == 0.5


def test_every_probe_is_a_task_of_the_harness():
    assert {*PROBES} == {*BUDGETS}
    assert all(TASKS[name]().budget is BUDGETS[name] for name in PROBES)


FILE = """
from training.settings import defaults

def get_config():
    c = defaults()
    c.model.width, c.model.depth, c.model.attention.heads = 8, 1, 1
    c.model.layers = ("local_attention+none",)
    c.model.local_attention.heads = 1
    return c

def trial():
    return {
        "name": "parity",
        "budget": {
            "steps": 2,
            "batch_size": 2,
            "train_length": 3,
            "test_lengths": (4,),
            "learning_rates": (0.01,),
            "test_rows": 8,
        },
        "candidates": {"near": {"local_attention": {"window": 1}}, "far": {}},
    }
"""


def test_the_command_prints_a_line_for_each_length_of_each_candidate(tmp_path, capsys):
    (tmp_path / "some.py").write_text(FILE)
    command.run([f"--config={tmp_path / 'some.py'}", "--candidates=near"])
    out = capsys.readouterr().out.splitlines()
    (line,) = [line for line in out if line.startswith("near")]
    name, rate, seed, length, accuracy, low, high, chance, nats = line.split()
    assert (name, float(rate), seed, length, float(chance)) == ("near", 0.01, "0", "4", 0.5)
    shares = float(low.strip("[,")), float(accuracy), float(high.strip("]"))
    assert 0 <= shares[0] < shares[1] < shares[2] <= 1 and float(nats) > 0
    assert not any(line.startswith("far") for line in out)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--probe=party"], "did you mean 'parity'"),
        ([], "neither --probe nor the config names a probe; known: "),
        (["--probe=parity", "--candidates=far"], "--candidates=far"),
    ],
)
def test_the_command_refuses_names_it_does_not_know(argv, message):
    with pytest.raises(ConfigError, match=message):
        command.run(argv)


def test_a_trial_refuses_sections_and_keys_it_does_not_know():
    with pytest.raises(ConfigError, match="trial.. has 'budgets'"):
        command.make_trial("parity", {"budgets": {}}, tiny.config())
    with pytest.raises(ConfigError, match="unknown key budget.step"):
        command.make_trial("parity", {"budget": {"step": 3}}, tiny.config())


TRIALS = sorted((Path(__file__).parents[2] / "configs" / "reproduce").glob("[!_]*.py"))


@pytest.mark.parametrize("path", TRIALS, ids=lambda path: path.stem)
def test_every_reproduction_declares_a_trial_that_can_be_made(path):
    overrides = runpy.run_path(str(path))["trial"]()
    model = freeze(Settings, load_config(str(path), Settings)).model
    trial = command.make_trial(overrides["name"], overrides, model)
    for candidate in trial.candidates.values():
        max_length = max(trial.budget.train_length, *trial.budget.test_lengths)
        assert adapt_model(candidate, trial.probe, max_length).layer_layout()
    for length in (trial.budget.train_length, *trial.budget.test_lengths):
        trial.probe.make_test_batch(np.random.default_rng(0), 1, length)
