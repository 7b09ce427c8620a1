"""Judging: bits per byte against a sum by hand, generation against the whole forward pass."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from arch import Sequence
from errors import ConfigError
from eval.generate import Sampling, choose, generate
from eval.harness import OWN, TASKS, chosen
from eval.held_out import bits_per_byte, sums
from eval.inference import measured
from eval.positions import Positions
from eval.task import Subject
from objectives import OBJECTIVES, Blank, CausalLM, Learner
from training import mesh as meshes
from training.settings import EvalConfig, Settings, TrainConfig


def test_bits_per_byte_counts_every_token_and_byte_once(monkeypatch):
    """A store of uneven documents, against log-probabilities of whole rows in numpy."""
    from data.loader import windows

    store = FakeStore([5, 0, 9, 1, 3])
    made = tiny.model(tiny.config(depth=1))
    settings = Settings(train=TrainConfig(length=6), eval=EvalConfig(batch=2))
    mesh = meshes.build(meshes.MeshConfig())
    placed = jax.device_put(made, meshes.layouts(mesh, made))
    data = types.SimpleNamespace(tokenizer=Blank())
    subject = Subject(Learner(placed), mesh, settings, CausalLM(), data)
    nats, predicted = sums(subject, store)["nats"]
    assert predicted == sum(n + 1 for n in (5, 0, 9, 1, 3))
    expected, batches = 0.0, windows(store, 2, 6, 1, CausalLM().example)
    for index in range(len(batches)):
        batch = batches[index]
        hidden = made(batch["tokens"], Sequence.of(batch, "causal"))[0]
        logits = np.asarray(made.logits(hidden), np.float64)[..., : tiny.VOCAB]
        chance = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        right = np.take_along_axis(chance, batch["targets"][..., None], -1)[..., 0]
        expected -= (right * batch["weights"]).sum()
    assert nats == pytest.approx(expected, rel=1e-5)
    assert bits_per_byte(nats, store) == pytest.approx(nats / math.log(2) / 100)


class FakeStore:
    """Documents of given lengths; 100 bytes of text."""

    text_bytes, bos, eos, folder, vocab = 100, 38, 39, "fake", tiny.VOCAB

    def __init__(self, lengths):
        self.lengths = np.array(lengths)
        self._tokens = np.random.default_rng(0).integers(0, 38, sum(lengths)).astype(np.uint16)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])

    def slice(self, document, start, stop):
        at = self._starts[document]
        return self._tokens[at + start : at + stop]

    def weights(self, document, start, stop):
        return None


def test_greedy_continuations_are_those_of_the_whole_forward_pass():
    """Prompts of unequal length, in one batch and each alone."""
    made = tiny.model(tiny.config(depth=2))
    prompts = [np.array([1, 2, 3, 4]), np.array([7])]
    key, greedy = jax.random.key(0), Sampling(temperature=0.0)
    together = generate(made, prompts, 5, key=key, sampling=greedy)
    for prompt, found in zip(prompts, together, strict=True):
        row = list(prompt)
        for _ in range(5):
            ids = jnp.asarray([row])
            logits = made.logits(made(ids, Sequence.plain(1, len(row)))[0])
            row.append(int(logits[0, -1].argmax()))
        np.testing.assert_array_equal(found, row[len(prompt) :])


def test_generation_stops_and_samples_from_the_likeliest():
    made = tiny.model(tiny.config(depth=1))
    (whole,) = generate(made, [np.array([1])], 6, key=jax.random.key(0))
    (cut,) = generate(made, [np.array([1])], 6, key=jax.random.key(0), stop=int(whole[2]))
    np.testing.assert_array_equal(cut, whole[: list(whole).index(whole[2])])
    logits = jnp.tile(jnp.array([0.0, 3.0, 2.0, 1.0]), (2000, 1))
    drawn = np.asarray(choose(logits, jax.random.key(1), Sampling(temperature=0.5, top_k=2)))
    assert set(drawn) == {1, 2}
    share = 1 / (1 + math.exp(-2))  # of token 1 against token 2: their logits differ by 2
    assert (drawn == 1).mean() == pytest.approx(share, abs=0.03)


def test_sampling_keeps_what_it_is_told_to():
    logits = jnp.tile(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), (4000, 1))

    def check(expected, **how):
        drawn = np.asarray(choose(logits, jax.random.key(2), Sampling(**how)))
        shares = [(drawn == i).mean() for i in range(4)]
        np.testing.assert_allclose(shares, np.array(expected) / sum(expected), atol=0.03)
        assert all((share == 0) == (e == 0) for share, e in zip(shares, expected, strict=True))

    check([0.5, 0.3, 0.15, 0.05])
    check([0.5, 0.3, 0, 0], top_p=0.6)  # .5 alone is below .6
    check([1, 0, 0, 0], top_p=0.01)
    check([0.5, 0.3, 0, 0], min_p=0.5)
    check([0.5, 0.3, 0.15, 0], min_p=0.2, top_k=3)


def test_loss_by_place_adds_up_to_the_loss():
    store = FakeStore([5, 40, 9, 70, 3])
    made = tiny.model(tiny.config("mamba1", depth=1))
    settings = Settings(model=made.config, train=TrainConfig(length=8), eval=EvalConfig(batch=2))
    mesh = meshes.build(meshes.MeshConfig())
    placed = jax.device_put(made, meshes.layouts(mesh, made))
    data = types.SimpleNamespace(tokenizer=Blank(), test=store)
    subject = Subject(Learner(placed), mesh, settings, CausalLM(), data)
    scores = {score.name: score for score in Positions()(subject)}
    nats, predicted = sums(subject, store)["nats"]
    assert scores["test/bits_per_byte@1x"].value == pytest.approx(nats / math.log(2) / 100)
    longest = [scores[f"test/nats@{n}"] for n in (0, 2, 4, 8, 16, 32)]
    total = sum(score.value * score.weight for score in longest)
    bits = total / math.log(2) / 100
    assert scores["test/bits_per_byte@8x"].value == pytest.approx(bits, rel=1e-5)


def test_inference_counts_the_state_that_is_there():
    made = tiny.model(tiny.config("attention", depth=1))
    scores = {score.name: score.value for score in measured(made, 24)}
    heads = 4 * 4 * 2 * 4  # heads x width x (keys and values) x bytes
    assert scores["state_bytes_counted@24"] == heads * (24 + 16)
    assert 1 < scores["state_bytes@24"] / scores["state_bytes_counted@24"] < 1.3  # and its mask
    assert scores["prefill_tokens_per_second@24"] > 0 and scores["decode_ms_per_token@24"] > 0


def test_tasks_by_name():
    # covers C14
    assert set(OWN) == set(OBJECTIVES)
    for name, task in TASKS.items():
        assert task.objective in ("", *OBJECTIVES) and task.version >= 1, name
    for objective, tasks in OWN.items():
        assert chosen(Settings(objective=objective)) == tasks
        assert all(TASKS[name].objective == objective for name in tasks)
    with pytest.raises(ConfigError, match="'sampel'; did you mean 'sample'"):
        chosen(Settings(eval=EvalConfig(tasks=("sampel",))))
    with pytest.raises(ConfigError, match="'bits_per_byte', which judges causal_lm, not masked_lm"):
        chosen(Settings(objective="masked_lm", eval=EvalConfig(tasks=("bits_per_byte",))))
