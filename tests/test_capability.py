"""Synthetic probes: their rows against solvers that know only the rule; what learning reports."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from arch.config import EncoderConfig
from arch.embedding import HeadWeights
from arch.moe import MoeConfig
from arch.positions import PositionsConfig
from errors import ConfigError
from eval.capability import PROBES
from eval.capability import __main__ as command
from eval.capability.copying import Copying, SelectiveCopying
from eval.capability.examples import PAD, asked
from eval.capability.learning import TEST, VALID, Budget, Judged, arrays, fitted, judged, learn
from eval.capability.recall import Induction, Mqar, Needle
from eval.capability.tasks import BUDGETS, TASKS
from eval.capability.tracking import Modular, Parity
from eval.harness import TASKS as ALL
from objectives import Learner
from training.flags import load
from training.settings import Settings
from training.tree import frozen

ROWS, LENGTH = 64, 32


def made(name, kind, seed=0, rows=ROWS, length=LENGTH):
    return getattr(PROBES[name], kind)(np.random.default_rng(seed), rows, length)


# Solvers: a row up to and including the token that asks, to the answer. Each is written from the
# sentence that defines the probe, one row at a time.


def mqar(probe, row):
    for i in range(0, 2 * probe.pairs, 2):
        if row[i] == row[-1]:
            return row[i + 1]
    raise AssertionError("a key that no pair has")


def induction(probe, row):
    (place,) = [i for i in range(len(row) - 1) if row[i] == probe.vocab - 1]
    return row[place + 1]


def needle(probe, row):
    mark, question = probe.vocab - 2, probe.vocab - 1
    return row[row.index(mark) + len(row) - row.index(question)]


def copying(probe, row):
    copy = row.index(probe.vocab - 1)
    return row[len(row) - 1 - copy]


def selective_copying(probe, row):
    blank, mark = probe.vocab - 2, probe.vocab - 1
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


@pytest.mark.parametrize("kind", ["examples", "lessons"])
@pytest.mark.parametrize("name", PROBES)
def test_a_solver_that_knows_the_rule_answers_every_question(name, kind):
    probe, rows = PROBES[name], made(name, kind)
    assert rows.tokens.shape == rows.targets.shape == rows.weights.shape == (ROWS, LENGTH)
    assert {*np.unique(rows.weights)} <= {0, 1}
    assert ((rows.targets != PAD) == (rows.weights == 1)).all()
    assert rows.tokens.min() >= 0 and rows.tokens.max() < probe.vocab
    assert rows.weights.sum(axis=1).max() <= probe.questions(LENGTH)
    for row, place in zip(*np.nonzero(rows.weights), strict=True):
        read = rows.tokens[row, : place + 1].tolist()
        assert PAD not in read
        assert rows.targets[row, place] == SOLVERS[name](probe, read)


@pytest.mark.parametrize("name", PROBES)
def test_rows_are_a_function_of_the_seed_alone(name):
    a, b, other = made(name, "examples"), made(name, "examples"), made(name, "examples", seed=1)
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert (a.tokens != other.tokens).any()


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("length", [17, 32])
def test_who_has_not_read_the_row_does_no_better_than_chance(name, length):
    """The commonest answer of many rows, on as many others."""
    seen, other = (made(name, "examples", s, 4000, length) for s in (0, 1))
    guess = np.bincount(seen.targets[seen.weights == 1]).argmax()
    answers = other.targets[other.weights == 1]
    chance = PROBES[name].chance(length)
    error = np.sqrt(chance * (1 - chance) / len(answers))
    assert abs(np.mean(answers == guess) - chance) < 4 * error + 0.002


def test_examples_ask_once_a_row_where_lessons_ask_everywhere():
    for probe in (Parity(), Modular()):
        for length in (1, 2, 9, 10):
            judged_rows = probe.examples(np.random.default_rng(0), 5, length)
            lessons = probe.lessons(np.random.default_rng(0), 5, length)
            assert (judged_rows.tokens == lessons.tokens).all()
            assert (judged_rows.weights.sum(axis=1) == 1).all()
            assert (lessons.weights.sum(axis=1) == probe.questions(length)).all()
            last = np.flatnonzero(lessons.weights[0])[-1]
            assert judged_rows.weights[:, last].all()


def test_copies_of_lessons_have_every_length_and_padding_behind():
    rows = made("copying", "lessons", rows=400)
    copied = rows.weights.sum(axis=1)
    assert {*copied} == {*range(1, LENGTH // 2 + 1)}
    assert ((rows.tokens != PAD).sum(axis=1) == 2 * copied).all()
    assert (made("copying", "examples").weights.sum(axis=1) == LENGTH // 2).all()


def test_keys_come_again_mostly_soon():
    """p(r) ~ r^(power - 1): with power 1 all places are alike, with .01 the first is commonest."""
    for power, low, high in ((0.01, 0.35, 0.60), (1.0, 0.08, 0.17)):
        probe = Mqar(pairs=1, power=power)
        rows = probe.examples(np.random.default_rng(0), 2000, 18)
        places = np.nonzero(rows.weights)[1]
        assert {*places} == {*range(2, 18, 2)}
        assert low < np.mean(places == 2) < high


def test_the_law_of_the_places_is_the_stated_one():
    probe = Mqar(pairs=1, power=0.5)
    rows = probe.examples(np.random.default_rng(0), 20_000, 10)
    found = np.bincount((np.nonzero(rows.weights)[1] - 2) // 2) / 20_000
    law = np.array([r**-0.5 for r in (1, 2, 3, 4)])
    assert np.abs(found - law / law.sum()).max() < 0.015


@pytest.mark.parametrize(
    ("probe", "length", "word"),
    [
        (Mqar(pairs=5), 16, "mqar.pairs 5 must be at most 4"),
        (Mqar(pairs=3, values=2), 64, "at most 2"),
        (Induction(), 2, "at least 3"),
        (Needle(), 8, "at least 9"),
        (Copying(), 1, "at least 2"),
        (SelectiveCopying(), 15, "at most 7"),
        (Parity(), 0, "at least 1"),
    ],
)
def test_rows_too_short_are_refused(probe, length, word):
    with pytest.raises(ConfigError, match=word):
        probe.examples(np.random.default_rng(0), 2, length)


def test_rows_as_a_batch_have_no_document_where_padding_is():
    batch = arrays(asked(np.array([[3, 2, 0], [1, 1, 1]]), np.array([[0, 3, 0], [0, 0, 1]])))
    assert batch["segments"].tolist() == [[1, 1, 0], [1, 1, 1]]
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
    found = Judged(8, right, questions, 0.0)
    assert found.interval() == pytest.approx((low, high), abs=5e-5)
    assert found.accuracy == right / questions


class Oracle(NamedTuple):
    """Knows the parity and says so with logits that are `sure` apart."""

    sure: jax.Array

    def __call__(self, tokens, seq, *, key=None):
        answer = 1 + jnp.cumsum(tokens == 2, axis=1) % 2
        return jax.nn.one_hot(answer, 3), {}, None

    def features(self, hidden):
        return hidden

    def head_weights(self):
        return HeadWeights(self.sure * jnp.eye(3), None, 3, 1.0, 0.0)


@pytest.mark.parametrize(("sure", "right"), [(2.0, 1.0), (-2.0, 0.0)])
def test_answers_are_counted_once_and_by_their_log_probability(sure, right):
    learner = Learner(Oracle(jnp.float32(sure)))
    found = judged(learner, Parity(), 9000, 3, TEST)  # in batches of one row
    again = judged(learner, Parity(), 9, 300, VALID, 200)  # padded, the last batch cut
    assert (found.questions, again.questions) == (3, 300)
    assert found.accuracy == again.accuracy == right
    nats = np.log(np.exp(sure) + 2) - sure
    assert [found.nats, again.nats] == pytest.approx([nats, nats], rel=1e-5)


def test_a_model_gets_the_vocabulary_of_the_probe_and_a_place_for_every_token():
    table = PositionsConfig(learned=True, length=8)
    model = fitted(tiny.config(positions=table, encoder=EncoderConfig(depth=1)), Parity(), 99)
    assert (model.vocab, model.positions.length, model.encoder.depth) == (3, 99, 0)
    assert (model.width, model.depth, model.layers) == (tiny.WIDTH, 2, ("attention+mlp",))


def test_an_architecture_that_does_not_read_from_the_left_is_refused():
    moe = MoeConfig(experts=4, width=8, choice="expert")
    with pytest.raises(ConfigError, match="cannot read from the left"):
        fitted(tiny.config(channel="moe", moe=moe), Parity(), 9)


EASY = Budget(steps=40, batch=8, length=1, tests=(1,), rates=(1e-9, 2e-2), seeds=2, rows=64)


def test_the_rate_of_least_loss_is_taken_and_the_architecture_learns():
    """A row of one bit is its own parity."""
    found = learn(tiny.config(depth=1), Parity(), EASY)
    assert found.rate == 2e-2 and found.tried[2e-2] < 0.1 < 0.5 < found.tried[1e-9]
    assert len(found.runs) == 2 and found.runs[0] != found.runs[1]
    for ((one,),) in zip(found.runs, strict=True):
        assert (one.length, one.questions, one.accuracy) == (1, 64, 1.0) and one.nats < 0.1
    subject = SimpleNamespace(settings=Settings(model=tiny.config(depth=1)))
    scores = {s.name: s for s in TASKS["parity"](budget=EASY)(subject)}
    assert {*scores} == {
        "parity/accuracy@1",
        "parity/answer_nats@1",
        "parity/chance@1",
        "parity/learning_rate",
    }
    assert scores["parity/accuracy@1"][1:] == (1.0, 64)
    assert scores["parity/answer_nats@1"].value == found.runs[-1][0].nats  # and it repeats
    assert scores["parity/chance@1"].value == 0.5


def test_every_probe_is_a_task_of_the_harness():
    assert {*PROBES} == {*TASKS} == {*BUDGETS}
    assert all(ALL[name] is TASKS[name] for name in PROBES)


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
        "budget": {"steps": 2, "batch": 2, "length": 3, "tests": (4,), "rates": (0.01,), "rows": 8},
        "candidates": {"near": {"local_attention": {"window": 1}}, "far": {}},
    }
"""


def test_the_command_prints_a_line_for_each_length_of_each_candidate(tmp_path, capsys):
    (tmp_path / "some.py").write_text(FILE)
    command.run([f"--config={tmp_path / 'some.py'}", "--only=near"])
    out = capsys.readouterr().out.splitlines()
    (line,) = [line for line in out if line.startswith("near")]
    name, rate, seed, length, accuracy, low, high, chance, nats = line.split()
    assert (name, float(rate), seed, length, float(chance)) == ("near", 0.01, "0", "4", 0.5)
    shares = float(low.strip("[,")), float(accuracy), float(high.strip("]"))
    assert 0 <= shares[0] < shares[1] < shares[2] <= 1 and float(nats) > 0
    assert not any(line.startswith("far") for line in out)


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--probe=party"], "did you mean 'parity'"),
        ([], "--probe= names no probe"),
        (["--probe=parity", "--only=far"], "--only=far"),
    ],
)
def test_the_command_refuses_names_it_does_not_know(argv, word):
    with pytest.raises(ConfigError, match=word):
        command.run(argv)


def test_a_trial_refuses_sections_and_keys_it_does_not_know():
    with pytest.raises(ConfigError, match="trial.. has 'budgets'"):
        command.trial("parity", {"budgets": {}}, tiny.config())
    with pytest.raises(ConfigError, match="unknown key budget.step"):
        command.trial("parity", {"budget": {"step": 3}}, tiny.config())


TRIALS = sorted((Path(__file__).parents[1] / "configs" / "reproduce").glob("[!_]*.py"))


@pytest.mark.parametrize("path", TRIALS, ids=lambda path: path.stem)
def test_every_reproduction_declares_a_trial_that_can_be_made(path):
    declared = runpy.run_path(str(path))["trial"]()
    model = frozen(Settings, load(str(path), Settings)).model
    made = command.trial(declared["name"], declared, model)
    for candidate in made.candidates.values():
        longest = max(made.budget.length, *made.budget.tests)
        assert fitted(candidate, made.probe, longest).plan()
    for length in (made.budget.length, *made.budget.tests):
        made.probe.examples(np.random.default_rng(0), 1, length)
